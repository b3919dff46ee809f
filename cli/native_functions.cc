#include "cli/native_functions.h"

namespace takt {

NativeFunctions native_functions() { return {}; }

}  // namespace takt
