#include "dispatcher/slot_plan.h"

#include <algorithm>

namespace takt {

Duration slot_jitter(const std::string& schedule_id, Timestamp slot, Duration jitter) {
  if (jitter.count() <= 0) return Duration(0);
  std::uint64_t hash = 14695981039346656037ULL;  // FNV-1a, 64 bits: must be the same in every process
  const auto mix = [&hash](std::uint64_t byte) { hash = (hash ^ (byte & 0xFFU)) * 1099511628211ULL; };
  for (const char c : schedule_id) mix(static_cast<unsigned char>(c));
  const auto us = static_cast<std::uint64_t>(to_unix_us(slot));
  for (unsigned shift = 0; shift < 64; shift += 8) mix(us >> shift);
  hash ^= hash >> 32U;
  return Duration(static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(jitter.count() + 1)));
}

bool is_missed(const SlotPolicy& policy, Timestamp slot, Timestamp now) { return slot < now - policy.misfire_after - policy.jitter; }

std::string slot_tick_id(const std::string& job, const std::string& schedule, Timestamp slot) {
  return job + "/" + schedule + "@" + format_rfc3339(slot);
}

SlotPlan plan_slots(const Cron& cron, const SlotPolicy& policy, const std::string& schedule_id, Timestamp next_due, Timestamp now,
                    int most) {
  SlotPlan plan;
  std::vector<Timestamp> missed;
  std::optional<Timestamp> slot = next_due;
  const Timestamp oldest_allowed = now - policy.misfire_max_age;
  if (*slot < oldest_allowed) {  // jump over what may never run, without walking through it
    plan.missed = 1;
    plan.last = oldest_allowed - std::chrono::microseconds(1);
    slot = cron.next(oldest_allowed - std::chrono::seconds(1));
  }
  for (int looked_at = 0; slot && *slot <= now && looked_at < most; ++looked_at, slot = cron.next(*slot)) {
    if (*slot + slot_jitter(schedule_id, *slot, policy.jitter) > now) break;
    plan.last = *slot;
    if (*slot < oldest_allowed) {
      ++plan.missed;
    } else if (is_missed(policy, *slot, now)) {
      ++plan.missed;
      missed.push_back(*slot);
    } else {
      plan.ticks.push_back(*slot);
    }
  }
  std::size_t kept = 0;
  if (policy.misfire == MisfirePolicy::once) kept = 1;
  if (policy.misfire == MisfirePolicy::all) kept = static_cast<std::size_t>(policy.misfire_limit);
  kept = std::min(kept, missed.size());
  plan.ticks.insert(plan.ticks.begin(), missed.end() - static_cast<std::ptrdiff_t>(kept), missed.end());
  plan.next_due = slot;
  if (slot) plan.next_fire = *slot + slot_jitter(schedule_id, *slot, policy.jitter);
  return plan;
}

}  // namespace takt
