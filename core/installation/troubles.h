#pragma once
#include <array>
#include <string>
#include <vector>

#include "core/installation/installation.h"
#include "core/observe/metrics.h"

namespace takt {

/// What may keep work from being done: six of the services, then four of jobs.
constexpr std::array<const char*, 10> kTroubleKinds{"no_leader", "no_worker", "no_archive", "silent",  "not_ready",
                                                    "key",       "held",      "failing",    "blocked", "paused"};

/// Something that does.
struct Trouble {
  std::string what;    ///< one of kTroubleKinds
  std::string about;   ///< the job, service (id@host) or queue; empty: the whole, or those that are not named
  std::string text;    ///< in words: what, where, why, and what to do where that is not plain
  bool meant = false;  ///< somebody wants it so: told, but no fault
  int count = 1;       ///< of how many it is told
};
/// In order of weight. Pure.
std::vector<Trouble> troubles_of(const Installation& installation);

InstallationGauges installation_gauges(const Installation& installation, const std::vector<Trouble>& troubles);

}  // namespace takt
