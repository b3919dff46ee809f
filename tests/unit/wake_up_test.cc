#include "core/process/wake_up.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <thread>

namespace takt {
namespace {

using namespace std::chrono_literals;

TEST(WakeUpTest, CountsWakesSinceTheLastWaitOnceHoweverManyTheyWere) {
  WakeUp wake_up;
  EXPECT_FALSE(wake_up.wait(1ms));
  wake_up.wake();
  wake_up.wake();
  EXPECT_TRUE(wake_up.wait(1h));
  EXPECT_FALSE(wake_up.drain());
}

TEST(WakeUpTest, EndsAWaitFromAnotherThreadAndOneForItsDescriptor) {
  WakeUp wake_up;
  std::thread other([&] { wake_up.wake(); });
  pollfd watched{wake_up.descriptor(), POLLIN, 0};
  EXPECT_EQ(::poll(&watched, 1, 60'000), 1);
  other.join();
  EXPECT_TRUE(wake_up.drain());
}

}  // namespace
}  // namespace takt
