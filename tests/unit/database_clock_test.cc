#include "core/db/database_clock.h"

#include <gtest/gtest.h>

#include "tests/support/clock.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr auto kHeard = 1'800'000'000'000'000;  // far from the fake clock's own time

TEST(DatabaseClock, IsItsOwnUntilItHears) {
  FakeClock own;
  DatabaseClock clock(own);
  EXPECT_FALSE(clock.heard());
  EXPECT_EQ(clock.now(), own.now());
}

TEST(DatabaseClock, CarriesWhatItHeardOnBySteadyTimeWhateverTheWallClockSays) {
  FakeClock own;
  DatabaseClock clock(own);
  clock.hear(kHeard, own.steady());
  own.advance(90s);
  EXPECT_EQ(to_unix_us(clock.now()), kHeard + 90'000'000);
  EXPECT_EQ(clock.steady(), own.steady());
}

TEST(DatabaseClock, DoesNotTakeAnAnswerThatWasLongOnItsWay) {
  FakeClock own;
  DatabaseClock clock(own);
  clock.hear(kHeard, own.steady());
  const auto asked = own.steady();
  own.advance(10min);  // frozen with the answer in its socket
  clock.hear(kHeard, asked);
  EXPECT_EQ(to_unix_us(clock.now()), kHeard + 600'000'000);
}

TEST(DatabaseClock, TakesTheFirstAnswerHoweverLateItIs) {
  FakeClock own;
  DatabaseClock clock(own);
  const auto asked = own.steady();
  own.advance(5s);
  clock.hear(kHeard, asked);
  EXPECT_EQ(to_unix_us(clock.now()), kHeard);
}

}  // namespace
}  // namespace takt
