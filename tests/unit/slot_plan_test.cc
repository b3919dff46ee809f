#include "dispatcher/slot_plan.h"

#include <gtest/gtest.h>

namespace takt {
namespace {

using namespace std::chrono_literals;

const Timestamp kNow = *parse_rfc3339("2026-11-21T10:00:00Z");

Cron every_second() { return std::get<Cron>(Cron::parse("* * * * * *")); }
Cron every_minute() { return std::get<Cron>(Cron::parse("* * * * *")); }
SlotPolicy policy(MisfirePolicy misfire, int limit = 10) { return {misfire, 60s, limit, 24h, 0ms}; }

TEST(SlotPlan, TicksEverySlotOfAShortPauseWhateverThePolicy) {
  for (const auto misfire : {MisfirePolicy::skip, MisfirePolicy::once, MisfirePolicy::all}) {
    const auto plan = plan_slots(every_second(), policy(misfire), "j/s", kNow - 4s, kNow);
    EXPECT_EQ(plan.ticks.size(), 5U) << "a change of leader skips nothing";
    EXPECT_EQ(plan.missed, 0);
    EXPECT_EQ(plan.next_due, kNow + 1s);
  }
}

TEST(SlotPlan, AppliesThePolicyToSlotsOfAnOutage) {
  const Timestamp since = kNow - 10min;  // minutes 0 to 10, of which the last two are not older than 60 s
  const auto skip = plan_slots(every_minute(), policy(MisfirePolicy::skip), "j/s", since, kNow);
  EXPECT_EQ(skip.ticks, (std::vector<Timestamp>{kNow - 1min, kNow}));
  EXPECT_EQ(skip.missed, 9);
  const auto once = plan_slots(every_minute(), policy(MisfirePolicy::once), "j/s", since, kNow);
  EXPECT_EQ(once.ticks, (std::vector<Timestamp>{kNow - 2min, kNow - 1min, kNow}));
  const auto all = plan_slots(every_minute(), policy(MisfirePolicy::all, 3), "j/s", since, kNow);
  EXPECT_EQ(all.ticks, (std::vector<Timestamp>{kNow - 4min, kNow - 3min, kNow - 2min, kNow - 1min, kNow}));
}

TEST(SlotPlan, RunsASingleOldSlotOnceAndNeverBeyondItsAge) {
  const auto daily = std::get<Cron>(Cron::parse("0 6 * * *"));
  const auto plan = plan_slots(daily, policy(MisfirePolicy::once), "j/s", kNow - 4h, kNow);
  EXPECT_EQ(plan.ticks, std::vector<Timestamp>{kNow - 4h});
  SlotPolicy strict = policy(MisfirePolicy::once);
  strict.misfire_max_age = 1h;
  EXPECT_TRUE(plan_slots(daily, strict, "j/s", kNow - 4h, kNow).ticks.empty());
}

TEST(SlotPlan, JumpsOverAYearWithoutWalkingIt) {
  const auto plan = plan_slots(every_second(), policy(MisfirePolicy::once), "j/s", kNow - 8760h, kNow, 100'000);
  EXPECT_EQ(plan.ticks.size(), 62U) << "60 s and its ends are merely late; one stands for the rest";
  EXPECT_EQ(plan.next_due, kNow + 1s);
}

TEST(SlotPlan, GoesOnFromWhereItStopped) {
  Timestamp due = kNow - 30s;
  std::vector<Timestamp> ticks;
  for (int round = 0; round < 10 && due <= kNow; ++round) {
    const auto plan = plan_slots(every_second(), policy(MisfirePolicy::once), "j/s", due, kNow, 7);
    ticks.insert(ticks.end(), plan.ticks.begin(), plan.ticks.end());
    due = *plan.next_due;
  }
  ASSERT_EQ(ticks.size(), 31U);
  for (std::size_t i = 1; i < ticks.size(); ++i) EXPECT_EQ(ticks[i] - ticks[i - 1], 1s);
}

TEST(SlotPlan, JitterIsTheSameEverywhereAndSpreads) {
  std::set<std::int64_t> delays;
  for (int i = 0; i < 100; ++i) {
    const auto delay = slot_jitter("job/" + std::to_string(i), kNow, 10s);
    EXPECT_EQ(delay, slot_jitter("job/" + std::to_string(i), kNow, 10s));
    EXPECT_GE(delay, 0ms);
    EXPECT_LE(delay, 10s);
    delays.insert(delay.count());
  }
  EXPECT_GT(delays.size(), 90U);
  SlotPolicy jittered = policy(MisfirePolicy::once);
  jittered.jitter = 10s;
  const auto early = plan_slots(every_minute(), jittered, "job/1", kNow, kNow);
  EXPECT_TRUE(early.ticks.empty()) << "its moment has not come";
  EXPECT_EQ(early.next_due, kNow);
  EXPECT_EQ(early.next_fire, kNow + slot_jitter("job/1", kNow, 10s));
}

TEST(SlotPlan, NamesTicksByJobScheduleAndDueTime) { EXPECT_EQ(slot_tick_id("a.b", "daily", kNow), "a.b/daily@2026-11-21T10:00:00Z"); }

}  // namespace
}  // namespace takt
