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

/// Turns schedules into tick rows, up to kAhead before they are due, so that of many which are due together each has but to be
/// sent. One round reads at most 250 schedules through schedules_fire and writes with one statement, conditional on the
/// term and on each schedule still being at the slot that was read. Not thread-safe.
class ScheduleScan {
 public:
  struct Result {
    std::vector<TickRow> ticks;       ///< newly stored; to be published at their fire_at
    std::optional<Duration> next_in;  ///< until the next slot can be stored, if that is within `lookahead`
    bool more = false;                ///< further schedules can be stored already
  };
  /// How long before its time a slot is stored. Pausing stops it even then (core/config/apply); a changed schedule does not.
  static constexpr Duration kAhead = std::chrono::milliseconds(500);

  ScheduleScan(Database& database, Metrics& metrics) : database_(database), metrics_(metrics) {}
  Result run_once(const Term& term, Duration lookahead);
  /// For the beginning of a term: what an earlier leader had stored ahead and never sent goes back to its schedule where it is
  /// as late as a missed slot by now, so that the misfire policy decides about it as about the others. Reads the 5,000
  /// latest unsent ticks; returns how many went back.
  int take_back(const Term& term);

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
