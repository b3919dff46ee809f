#pragma once
#include <string_view>

namespace takt {

/// Of this binary: "0.1.0".
std::string_view takt_version();

}  // namespace takt
