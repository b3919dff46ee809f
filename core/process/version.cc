#include "core/process/version.h"

namespace takt {

std::string_view takt_version() { return TAKT_VERSION; }

}  // namespace takt
