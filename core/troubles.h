#pragma once
#include <string>
#include <vector>

#include "core/installation.h"
#include "core/metrics.h"

namespace takt {

/// Something that keeps work from being done.
struct Trouble {
  /// no_leader, no_worker, no_archive, silent, not_ready, key: of the services; held, failing, blocked, paused: of jobs
  std::string what;
  std::string about;   ///< the job, service (id@host) or queue; empty: the whole, or those that are not named
  std::string text;    ///< in words: what, where, why, and what to do where that is not plain
  bool meant = false;  ///< somebody wants it so: told, but no fault
  int count = 1;       ///< of how many it is told
};
/// In order of weight. Pure.
std::vector<Trouble> troubles_of(const Installation& installation);

InstallationGauges installation_gauges(const Installation& installation, const std::vector<Trouble>& troubles);

}  // namespace takt
