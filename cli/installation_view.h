#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/installation/troubles.h"

namespace takt {

/// Services and troubles, as `takt status`, `takt services` and `takt check` show them.
nlohmann::json services_as_json(const Installation& installation);
nlohmann::json troubles_as_json(const std::vector<Trouble>& troubles);
/// "2 dispatchers, 3 workers (1 run of 36), 1 archive"; "none" where nobody lives.
std::string living_by_role(const Installation& installation);

}  // namespace takt
