#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/cron.h"
#include "core/db/database.h"
#include "core/metrics.h"
#include "core/tick_message.h"
#include "dispatcher/leadership.h"

namespace takt {

/// Turns due schedules into tick rows. One round reads at most 1,000 schedules through schedules_fire and writes with
/// one statement, conditional on the term and on each schedule still being at the slot that was read. Not thread-safe.
class ScheduleScan {
 public:
  struct Result {
    std::vector<TickRow> ticks;       ///< newly stored; to be published
    std::optional<Duration> next_in;  ///< until the next slot, if it is within `lookahead`
    bool more = false;                ///< further schedules are due already
  };

  ScheduleScan(Database& database, Metrics& metrics) : database_(database), metrics_(metrics) {}
  Result run_once(const Term& term, Duration lookahead);

 private:
  struct DueSchedule;
  std::vector<DueSchedule> read_due(Duration lookahead, Result& result);
  /// Parsed expressions by their text; emptied when it holds 10,000.
  const Cron* parsed(const std::string& cron, const std::string& zone);

  Database& database_;
  Metrics& metrics_;
  std::map<std::string, Cron> cache_;
};

}  // namespace takt
