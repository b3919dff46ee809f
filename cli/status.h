#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/table.h"
#include "core/config/removal.h"
#include "core/installation/troubles.h"

namespace takt {

struct JobStatus {
  std::string name, state;
  std::int64_t due = 0;
  double oldest_due_s = 0;
  std::int64_t blocked = 0, dead_letters = 0;
  std::int64_t runs_24h = 0, runs_lost_24h = 0, done_24h = 0, attempts_failed_24h = 0;  ///< of the newest 10,000 runs
  std::optional<double> last_run_s;                                                     ///< since one that had items
  std::int64_t ticks = 0;                                                               ///< published, and not begun by a worker
  double oldest_tick_s = 0;
  double done_a_second = 0;  ///< over the last ten seconds
};

/// What is going on. Counts stop at 10,000.
struct Status {
  struct Fault {
    std::string what, why;
  };
  Installation installation;
  std::vector<Trouble> troubles;
  std::int64_t dead_letters_open = 0, outbox_ticks = 0, outbox_dead_letters = 0, runs_active = 0, schedules_late = 0, dead_messages = 0;
  std::vector<Fault> faults;  ///< schedules and definitions that were set aside
  std::vector<JobStatus> jobs;
  std::vector<Backlog> removed;  ///< jobs that were, with items left
};

Status read_status(Database& database);
nlohmann::json status_as_json(const Status& status);
/// What stands above the table of jobs, and below it.
std::string status_head(const Status& status, bool with_names = false);
std::string status_foot(const Status& status);
Table status_table(const std::vector<JobStatus>& jobs);

}  // namespace takt
