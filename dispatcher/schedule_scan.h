#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/db/database.h"
#include "core/observe/metrics.h"
#include "core/tick/tick_message.h"
#include "core/time/cron.h"
#include "dispatcher/leadership.h"
#include "dispatcher/slot_plan.h"

namespace takt {

/// Turns schedules into tick rows, up to kAhead before they are due, so that of many which are due together each has but to be
/// sent. One round reads at most 250 schedules through schedules_fire and writes with one statement, conditional on the
/// term and on each schedule still being at the slot that was read. A schedule that cannot be planned, since its expression or
/// zone is no longer understood, is set aside for an hour, with its `fault`, and delays no other. A tick that is stored ahead has the time
/// at which it is to be sent for its publish_at. Not thread-safe.
class ScheduleScan {
 public:
  struct Result {
    std::vector<TickRow> ticks;       ///< newly stored; to be published at their fire_at
    std::optional<Duration> next_in;  ///< until the next slot can be stored, if that is within `lookahead`
    bool more = false;                ///< further schedules can be stored already
  };
  /// How long before its time a slot is stored. Even then it is stopped when its schedule is paused, removed, or given other
  /// times (core/config/apply).
  static constexpr Duration kAhead = std::chrono::milliseconds(500);

  ScheduleScan(Database& database, Metrics& metrics) : database_(database), metrics_(metrics) {}
  Result run_once(const Term& term, Duration lookahead);
  struct Inherited {
    int taken_back = 0;
    std::vector<TickRow> ticks;  ///< to be published at their fire_at, which may have just passed
  };
  /// For the beginning of a term: what an earlier leader had stored ahead and never sent. Where it is as late as a missed
  /// slot by now, it goes back to its schedule, so that the misfire policy decides about it as about the others; otherwise it
  /// is returned, unless it is later than `sweep_after`. Reads the 20,000 latest unsent ticks.
  Inherited inherit(const Term& term, Duration sweep_after);

 private:
  struct DueSchedule;
  std::vector<DueSchedule> read_due(Duration lookahead, Result& result);
  struct Faults;
  /// Nothing where it cannot be planned; then it is noted in `faults`.
  std::optional<SlotPlan> plan(const DueSchedule& schedule, Faults& faults);
  /// Parsed expressions by their text; emptied when it holds 10,000. Throws if it is not understood.
  const Cron& parsed(const std::string& cron, const std::string& zone);

  Database& database_;
  Metrics& metrics_;
  std::map<std::string, Cron> cache_;
};

}  // namespace takt
