#include "worker/settle_policy.h"

#include <gtest/gtest.h>

#include <random>

#include "worker/backoff.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

JobDefinition job() {
  JobDefinition definition;
  definition.name = "demo";
  definition.max_attempts = 3;
  definition.backoff = {{}, 10s, 2.0, 60s, false};
  return definition;
}
ClaimedItem item(int attempt) { return {1, attempt, "", "{}", 0ms, 0ms}; }
HandlerResult result(ItemClass item_class) {
  HandlerResult handled;
  handled.item_class = item_class;
  handled.reason = "why";
  return handled;
}

TEST(SettleItem, MapsEveryClass) {
  struct Row {
    ItemClass item_class;
    int attempt;
    ItemState state;
    bool spent;
    Duration delay;
  };
  for (const auto& row : std::vector<Row>{{ItemClass::done, 1, ItemState::done, true, 0ms},
                                          {ItemClass::noop, 3, ItemState::done, true, 0ms},
                                          {ItemClass::skipped, 3, ItemState::pending, false, 40s},
                                          {ItemClass::blocked, 1, ItemState::blocked, true, 0ms},
                                          {ItemClass::error, 1, ItemState::pending, true, 10s},
                                          {ItemClass::error, 2, ItemState::pending, true, 20s},
                                          {ItemClass::error, 3, ItemState::dead, true, 0ms},
                                          {ItemClass::fatal, 1, ItemState::dead, true, 0ms},
                                          {ItemClass::expired, 1, ItemState::dead, false, 0ms},
                                          {ItemClass::handed_back, 3, ItemState::pending, false, 0ms},
                                          {ItemClass::interrupted, 1, ItemState::pending, true, 0ms},
                                          {ItemClass::interrupted, 3, ItemState::pending, false, 0ms}}) {
    const auto settled = settle_item(item(row.attempt), result(row.item_class), job(), 0ms, 0.5);
    EXPECT_EQ(settled.state, row.state) << to_string(row.item_class) << row.attempt;
    EXPECT_EQ(settled.spent, row.spent) << to_string(row.item_class) << row.attempt;
    EXPECT_EQ(settled.delay, row.delay) << to_string(row.item_class) << row.attempt;
  }
}

TEST(SettleItem, HonoursRetryAfterUpToTheLongestPause) {
  auto busy = result(ItemClass::error);
  busy.retry_after = 45s;
  EXPECT_EQ(settle_item(item(1), busy, job(), 0ms, 0.5).delay, 45s);
  busy.retry_after = 24h;
  EXPECT_EQ(settle_item(item(1), busy, job(), 0ms, 0.5).delay, 60s);
}

TEST(SettleItem, DiesOfAgeInsteadOfWaitingBeyondIt) {
  auto definition = job();
  definition.max_age = 1min;
  EXPECT_EQ(settle_item(item(1), result(ItemClass::error), definition, 40s, 0.5).state, ItemState::pending);
  const auto old = settle_item(item(1), result(ItemClass::error), definition, 55s, 0.5);
  EXPECT_EQ(old.state, ItemState::dead);
  EXPECT_EQ(old.reason, "max_age");
}

TEST(SettleItem, Finding7_ALostAttemptIsNoFailureOfTheItem) {
  const auto failed = result(ItemClass::error);
  EXPECT_EQ(settle_item(item(3), failed, job(), 0ms, 0.5).state, ItemState::dead);
  const auto spared = settle_item(item(3), failed, job(), 0ms, 0.5, 1);
  EXPECT_EQ(spared.state, ItemState::pending);
  EXPECT_EQ(spared.delay, 40s);
  EXPECT_EQ(settle_item(item(4), failed, job(), 0ms, 0.5, 1).state, ItemState::dead);
  EXPECT_EQ(settle_item(item(3), result(ItemClass::fatal), job(), 0ms, 0.5, 2).state, ItemState::dead);
  auto definition = job();
  definition.max_age = 1min;
  EXPECT_EQ(settle_item(item(3), failed, definition, 55s, 0.5, 1).reason, "max_age");
}

TEST(Backoff, FollowsAListAndRepeatsItsLast) {
  Backoff backoff;
  backoff.list = {1min, 5min, 30min};
  EXPECT_EQ(backoff_ceiling(backoff, 1), 1min);
  EXPECT_EQ(backoff_ceiling(backoff, 3), 30min);
  EXPECT_EQ(backoff_ceiling(backoff, 300), 30min);
}

TEST(BackoffProperty, StaysWithinItsBoundsAndItsMeanIsHalfTheCeiling) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  for (const double factor : {1.0, 1.5, 2.0, 10.0}) {
    const Backoff backoff{{}, 100ms, factor, 1h, true};
    Duration previous{0};
    for (int attempt = 1; attempt < 2000; attempt += attempt < 20 ? 1 : 97) {
      const auto ceiling = backoff_ceiling(backoff, attempt);
      EXPECT_GE(ceiling, previous);
      EXPECT_LE(ceiling, 1h);
      previous = ceiling;
      double sum = 0;
      for (int i = 0; i < 2000; ++i) {
        const auto pause = backoff_pause(backoff, attempt, uniform(random));
        ASSERT_GE(pause, 0ms);
        ASSERT_LE(pause, ceiling);
        sum += static_cast<double>(pause.count());
      }
      EXPECT_NEAR(sum / 2000 / static_cast<double>(ceiling.count()), 0.5, 0.05);
    }
  }
}

}  // namespace
}  // namespace takt
