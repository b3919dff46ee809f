#include "worker/handlers/circuit_breaker.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/clock.h"

namespace takt {
namespace {

using namespace std::chrono_literals;
using State = CircuitBreaker::State;

const std::string kShop = "https://shop.example/hooks";

struct CircuitBreakerTest : testing::Test {
  FakeClock clock;
  CircuitBreaker breaker{clock};
  CircuitConfig config{3, 80, 10s, 30s};

  /// One request from begin to end; false if it was not let through.
  bool request(bool succeeds, const std::string& destination = kShop) {
    const auto pass = breaker.begin(destination, config);
    if (pass) breaker.end(destination, config, *pass, succeeds);
    return pass.has_value();
  }
  void open_it() {
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(request(false));
    ASSERT_EQ(breaker.allowance(kShop, config).state, State::open);
  }
};

TEST_F(CircuitBreakerTest, OpensAfterFailuresInARowAndOnlyForThatDestination) {
  request(false);
  request(false);
  request(true);  // begins the count again
  request(false);
  request(false);
  EXPECT_EQ(breaker.allowance(kShop, config).state, State::closed);
  request(false);
  const auto allowance = breaker.allowance(kShop, config);
  EXPECT_EQ(allowance.state, State::open);
  EXPECT_EQ(allowance.items, 0);
  EXPECT_EQ(allowance.pause, 10s);
  EXPECT_FALSE(request(true));
  EXPECT_TRUE(request(true, "https://shop.example/other"));
}

TEST_F(CircuitBreakerTest, OpensOnTheShareOfTheLastHundredThatFailed) {
  config.failures = 1000;
  for (int i = 0; i < 99; ++i) request(i % 5 == 0);  // 79 of 99 failed
  EXPECT_EQ(breaker.allowance(kShop, config).state, State::closed);
  request(false);
  EXPECT_EQ(breaker.allowance(kShop, config).state, State::open);
}

TEST_F(CircuitBreakerTest, LetsOneRequestTryAndThenTwiceAsManyEachTime) {
  open_it();
  clock.advance(9999ms);
  EXPECT_FALSE(breaker.begin(kShop, config));
  clock.advance(1ms);
  EXPECT_EQ(breaker.allowance(kShop, config).items, 1);
  const auto probe = breaker.begin(kShop, config);
  ASSERT_TRUE(probe);
  EXPECT_FALSE(breaker.begin(kShop, config)) << "one probe";
  EXPECT_EQ(breaker.allowance(kShop, config).items, 0);
  EXPECT_EQ(breaker.end(kShop, config, *probe, true), State::probing);
  for (int expected = 2; expected <= CircuitBreaker::kWhole; expected *= 2) {
    ASSERT_EQ(breaker.allowance(kShop, config).items, expected);
    ASSERT_TRUE(request(true));
  }
  EXPECT_EQ(breaker.allowance(kShop, config).state, State::closed);
}

TEST_F(CircuitBreakerTest, StaysOpenTwiceAsLongAfterEachFailedTryUpToItsLongestPause) {
  open_it();
  for (const auto pause : {20s, 30s, 30s}) {
    clock.advance(std::chrono::duration_cast<Duration>(breaker.allowance(kShop, config).pause));
    ASSERT_TRUE(request(false));
    EXPECT_EQ(breaker.allowance(kShop, config).pause, pause);
  }
  clock.advance(30s);
  while (breaker.allowance(kShop, config).state != State::closed) ASSERT_TRUE(request(true));
  open_it();
  EXPECT_EQ(breaker.allowance(kShop, config).pause, 10s) << "once closed, the first pause again";
}

TEST_F(CircuitBreakerTest, HearsNothingFromRequestsOfThePeriodBefore) {
  const auto late = breaker.begin(kShop, config);
  ASSERT_TRUE(late);
  open_it();
  EXPECT_EQ(breaker.end(kShop, config, *late, true), State::open);
  clock.advance(10s);
  const auto probe = breaker.begin(kShop, config);
  ASSERT_TRUE(probe);
  EXPECT_EQ(breaker.end(kShop, config, *late, false), State::probing);
  EXPECT_EQ(breaker.end(kShop, config, *probe, true), State::probing);
  EXPECT_EQ(breaker.allowance(kShop, config).items, 2) << "the probe alone counted";
}

TEST_F(CircuitBreakerTest, WithoutALimitLeavesNothingAlone) {
  config.failures = 0;
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(request(false));
  EXPECT_EQ(breaker.allowance(kShop, config).state, State::closed);
}

TEST(DestinationOf, LeavesTheQueryOut) {
  HttpHandlerConfig config;
  config.url = "https://shop.example/hooks?token=x";
  EXPECT_EQ(destination_of(config), "https://shop.example/hooks");
}

}  // namespace
}  // namespace takt
