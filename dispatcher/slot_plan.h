#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/config/job.h"
#include "core/time/cron.h"
#include "core/time/time.h"

namespace takt {

/// What a schedule's definition says about its slots.
struct SlotPolicy {
  MisfirePolicy misfire = MisfirePolicy::once;
  Duration misfire_after{};
  int misfire_limit = 1;
  Duration misfire_max_age{};
  Duration jitter{};
};

struct SlotPlan {
  std::vector<Timestamp> ticks;        ///< slots that tick now, oldest first
  int missed = 0;                      ///< slots older than misfire_after
  std::optional<Timestamp> last;       ///< the latest slot that was considered
  std::optional<Timestamp> next_due;   ///< nullopt: none ever again
  std::optional<Timestamp> next_fire;  ///< next_due plus its jitter
};

/// Decides about every slot from `next_due` to `now`. Pure. A slot late by at most misfire_after ticks (that covers a
/// change of leader); older ones are missed, and the policy says which of them tick; slots older than misfire_max_age
/// never do. At most `most` slots are looked at: what is left is found by the next call, from the returned next_due.
SlotPlan plan_slots(const Cron& cron, const SlotPolicy& policy, const std::string& schedule_id, Timestamp next_due, Timestamp now,
                    int most = 10'000);

/// Later than misfire_after, and than the longest delay that jitter may have meant: the misfire policy decides about it.
bool is_missed(const SlotPolicy& policy, Timestamp slot, Timestamp now);

/// The slot's delay, from 0 to `jitter`: a hash of schedule and slot, so that every dispatcher computes the same.
Duration slot_jitter(const std::string& schedule_id, Timestamp slot, Duration jitter);

/// "<job>/<schedule>@<due time>".
std::string slot_tick_id(const std::string& job, const std::string& schedule, Timestamp slot);

}  // namespace takt
