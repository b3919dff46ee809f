#include "core/observe/log_throttle.h"

#include <gtest/gtest.h>

#include "tests/support/clock.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

TEST(LogThrottle, Finding34_GivesOneLineASecondToEachKindAndCountsTheRest) {
  FakeClock clock;
  LogThrottle throttle(clock, 2);
  EXPECT_EQ(throttle.due(0), 1U);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(throttle.due(0), 0U);
  EXPECT_EQ(throttle.due(1), 1U) << "another kind has a line of its own";
  clock.advance(999ms);
  EXPECT_EQ(throttle.due(0), 0U);
  clock.advance(1ms);
  EXPECT_EQ(throttle.due(0), 502U);
  EXPECT_EQ(throttle.due(0), 0U);
  clock.advance(24h);
  EXPECT_EQ(throttle.due(0), 2U);
  EXPECT_EQ(throttle.due(1), 1U);
}

}  // namespace
}  // namespace takt
