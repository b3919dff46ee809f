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

struct SharedJudgment : CircuitBreakerTest {
  void hear(bool open) { breaker.hear({{kShop, open}}); }
  void hear_nothing() { breaker.hear(std::vector<CircuitBreaker::Failing>{}); }
  [[nodiscard]] State state() { return breaker.allowance(kShop, config).state; }
  /// Its news, as told to others who know `open` then.
  CircuitBreaker::News tell(std::optional<bool> open) {
    const auto news = breaker.news(kShop);
    breaker.told(kShop, open ? std::optional(CircuitBreaker::Failing{kShop, *open}) : std::nullopt);
    return news;
  }
};

TEST_F(SharedJudgment, FailuresAreNewsOnceAndASuccessTakesThemBack) {
  EXPECT_FALSE(breaker.news(kShop).any());
  const auto pass = breaker.begin(kShop, config);
  breaker.end(kShop, config, *pass, false, "the endpoint answered 500");
  const auto news = tell(false);
  EXPECT_EQ(news.failures, 1);
  EXPECT_EQ(news.error, "the endpoint answered 500");
  EXPECT_FALSE(news.open);
  EXPECT_FALSE(breaker.news(kShop).any()) << "told";
  request(false);
  request(true);
  const auto good = tell(std::nullopt);
  EXPECT_EQ(good.failures, 0);
  EXPECT_TRUE(good.works) << "others hold it for failing";
  EXPECT_FALSE(breaker.news(kShop).any());
}

TEST_F(SharedJudgment, ASuccessWhereNothingWasToldIsNoNews) {
  request(true);
  EXPECT_FALSE(breaker.news(kShop).any());
}

TEST_F(SharedJudgment, WhatFailedWhileTheNewsWasUnderWayIsToldNext) {
  request(false);
  const auto news = breaker.news(kShop);
  request(false);
  EXPECT_EQ(news.failures, 1);
  EXPECT_EQ(breaker.news(kShop).failures, 1) << "each once, also where several are told at a time";
  request(false);
  breaker.told(kShop, CircuitBreaker::Failing{kShop, false});
  EXPECT_EQ(breaker.news(kShop).failures, 1);
}

TEST_F(SharedJudgment, WhatCouldNotBeToldIsNewsAgainUnlessASuccessCame) {
  request(false);
  const auto first = breaker.news(kShop);
  breaker.not_told(kShop, first);
  const auto second = breaker.news(kShop);
  EXPECT_EQ(second.failures, 1);
  request(true);
  breaker.not_told(kShop, second);
  clock.advance(CircuitBreaker::kWorksStill);
  EXPECT_FALSE(breaker.news(kShop).any());
}

TEST_F(SharedJudgment, FailuresBetweenSuccessesAreNoNews) {
  config.failures = 100;
  for (int i = 0; i < 20; ++i) {
    request(i % 2 == 0);
    EXPECT_FALSE(breaker.news(kShop).any());
    clock.advance(10ms);
  }
  clock.advance(CircuitBreaker::kWorksStill);
  request(false);
  EXPECT_EQ(breaker.news(kShop).failures, 2) << "those since the last success";
}

TEST_F(SharedJudgment, AWorkerThatSawAFailureOpensWithTheOthers) {
  request(false);
  hear(true);
  EXPECT_EQ(state(), State::open);
  EXPECT_FALSE(request(true));
}

TEST_F(SharedJudgment, AWorkerThatSawNoneTriesOnceAndJudgesItself) {
  hear(true);
  ASSERT_EQ(state(), State::probing);
  EXPECT_EQ(breaker.allowance(kShop, config).items, 1);
  const auto pass = breaker.begin(kShop, config);
  ASSERT_TRUE(pass);
  EXPECT_FALSE(breaker.begin(kShop, config)) << "one";
  breaker.end(kShop, config, *pass, false);
  EXPECT_EQ(state(), State::open);
}

TEST_F(SharedJudgment, ASoundWorkerIsFreeOfABrokenOnesJudgment) {
  hear(true);
  EXPECT_TRUE(request(true));
  EXPECT_TRUE(breaker.news(kShop).works);
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(request(true));
  EXPECT_EQ(state(), State::closed);
  hear(true);  // once more, and it was so before
  EXPECT_EQ(state(), State::closed);
}

TEST_F(SharedJudgment, WhatDoubtedAloneForOthersIsWholeAgainWithThem) {
  hear(true);
  ASSERT_EQ(state(), State::probing);
  hear_nothing();
  EXPECT_EQ(state(), State::closed);
}

TEST_F(SharedJudgment, WhatWorksForOneIsTriedByAllAtOnceButOnlyOnceAPause) {
  open_it();
  hear(true);
  hear_nothing();
  EXPECT_EQ(breaker.allowance(kShop, config).items, 1) << "before its pause was over";
  EXPECT_TRUE(request(false));
  EXPECT_EQ(state(), State::open);
  hear(true);
  hear_nothing();
  EXPECT_FALSE(request(true)) << "what fails may be its own";
  clock.advance(20s);
  EXPECT_TRUE(request(true));
}

TEST_F(SharedJudgment, OneThatHeedsNobodyKeepsItsOwn) {
  CircuitBreaker own(clock, false);
  own.hear({{kShop, true}});
  EXPECT_EQ(own.allowance(kShop, config).state, State::closed);
  EXPECT_TRUE(own.begin(kShop, config));
}

TEST_F(SharedJudgment, ErrorsAreKeptUpToABound) {
  const auto pass = breaker.begin(kShop, config);
  breaker.end(kShop, config, *pass, false, std::string(10'000, 'x') + "\n");
  EXPECT_LE(breaker.news(kShop).error.size(), CircuitBreaker::kErrorBytes + 8);
}

}  // namespace
}  // namespace takt
