#pragma once
#include "worker/handlers/native_handler.h"

namespace takt {

/// The C++ functions of this binary, by name. A binary with functions of its own defines this in place of native_functions.cc.
NativeFunctions native_functions();

}  // namespace takt
