#include "core/time/cron.h"

#include <gtest/gtest.h>

#include <random>

namespace takt {
namespace {

using namespace std::chrono_literals;

Cron cron(const std::string& expression, const std::string& zone = "UTC") {
  auto parsed = Cron::parse(expression, zone);
  if (const auto* error = std::get_if<CronError>(&parsed)) ADD_FAILURE() << expression << ": " << error->message;
  return std::get<Cron>(std::move(parsed));
}

Timestamp at(const char* text) { return *parse_rfc3339(text); }

std::vector<std::string> fires(const Cron& expression, const char* from, int count) {
  std::vector<std::string> times;
  Timestamp time = at(from);
  for (int i = 0; i < count; ++i) {
    const auto next = expression.next(time);
    if (!next) break;
    times.push_back(format_rfc3339(*next));
    time = *next;
  }
  return times;
}

using Times = std::vector<std::string>;

TEST(Cron, FindsTheNextSlotOfEachField) {
  struct Row {
    const char *expression, *from, *next;
  };
  for (const auto& [expression, from, next] :
       std::vector<Row>{{"* * * * *", "2026-11-21T10:00:00Z", "2026-11-21T10:01:00Z"},
                        {"*/15 * * * *", "2026-11-21T10:44:59.5Z", "2026-11-21T10:45:00Z"},
                        {"0 9 * * MON-FRI", "2026-11-20T09:00:00Z", "2026-11-23T09:00:00Z"},
                        {"0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"},
                        {"*/10 * * * * *", "2026-11-21T10:00:05Z", "2026-11-21T10:00:10Z"},
                        {"30 4 1,15 * 5", "2026-11-21T00:00:00Z", "2026-11-27T04:30:00Z"},
                        {"0 0 L * *", "2026-02-01T00:00:00Z", "2026-02-28T00:00:00Z"},
                        {"0 0 L-2 * *", "2026-04-01T00:00:00Z", "2026-04-28T00:00:00Z"},
                        {"0 0 LW * *", "2026-10-01T00:00:00Z", "2026-10-30T00:00:00Z"},
                        {"0 0 15W * *", "2026-11-01T00:00:00Z", "2026-11-16T00:00:00Z"},
                        {"0 0 1W * *", "2026-07-31T00:00:00Z", "2026-08-03T00:00:00Z"},
                        {"0 0 31W * *", "2026-04-01T00:00:00Z", "2026-05-29T00:00:00Z"},
                        {"0 0 * * 5L", "2026-11-01T00:00:00Z", "2026-11-27T00:00:00Z"},
                        {"0 0 * * FRI#2", "2026-11-01T00:00:00Z", "2026-11-13T00:00:00Z"},
                        {"0 0 * * 7", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"},
                        {"0 0 ? * ?", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"},
                        {"5/20 * * * *", "2026-11-21T10:06:00Z", "2026-11-21T10:25:00Z"},
                        {"@monthly", "2026-11-21T00:00:00Z", "2026-12-01T00:00:00Z"},
                        {"@every 90s", "1970-01-01T00:00:00Z", "1970-01-01T00:01:30Z"},
                        {"@at 2026-12-24T18:00:00Z", "2026-11-21T00:00:00Z", "2026-12-24T18:00:00Z"},
                        {"@at 2026-12-24T18:00:00.25Z", "2026-12-24T18:00:00Z", "2026-12-24T18:00:00.25Z"},
                        {"CRON_TZ=America/Mexico_City 0 9 * * *", "2026-11-21T00:00:00Z", "2026-11-21T15:00:00Z"}}) {
    const auto found = cron(expression).next(at(from));
    ASSERT_TRUE(found) << expression;
    EXPECT_EQ(format_rfc3339(*found), next) << expression;
  }
}

TEST(Cron, SaysNeverForADateThatDoesNotExist) {
  EXPECT_FALSE(cron("0 0 30 2 *").next(at("2026-01-01T00:00:00Z")));
  EXPECT_FALSE(cron("@at 2026-01-01T00:00:00Z").next(at("2026-01-01T00:00:00Z")));
}

// Madrid, 29 March 2026: 02:00 CET becomes 03:00 CEST at 01:00 UTC.
TEST(CronDaylightSaving, FixedTimesInTheSkippedHourRunOnceRightAfterIt) {
  EXPECT_EQ(fires(cron("30 2 * * *", "Europe/Madrid"), "2026-03-28T12:00:00Z", 2), (Times{"2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"}));
  EXPECT_EQ(fires(cron("0,20,40 2 * * *", "Europe/Madrid"), "2026-03-28T12:00:00Z", 2),
            (Times{"2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"}));
  EXPECT_EQ(fires(cron("0 2,3 * * *", "Europe/Madrid"), "2026-03-28T12:00:00Z", 2),
            (Times{"2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"}));
}

// 25 October 2026: 03:00 CEST becomes 02:00 CET at 01:00 UTC; 02:30 comes at 00:30 and at 01:30 UTC.
TEST(CronDaylightSaving, FixedTimesInTheRepeatedHourRunOnce) {
  EXPECT_EQ(fires(cron("30 2 * * *", "Europe/Madrid"), "2026-10-24T12:00:00Z", 2), (Times{"2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}));
  EXPECT_EQ(fires(cron("30 2 * * *", "Europe/Madrid"), "2026-10-25T01:10:00Z", 1), (Times{"2026-10-26T01:30:00Z"}))
      << "asked within the repeat, it has run already";
}

TEST(CronDaylightSaving, IntervalsFollowTheWallClock) {
  EXPECT_EQ(fires(cron("*/30 * * * *", "Europe/Madrid"), "2026-10-25T00:00:00Z", 4),
            (Times{"2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"}));
  EXPECT_EQ(fires(cron("15 */2 * * *", "Europe/Madrid"), "2026-03-28T23:30:00Z", 2),
            (Times{"2026-03-29T02:15:00Z", "2026-03-29T04:15:00Z"}))
      << "02:15 does not exist that day, and an interval does not catch up";
}

TEST(CronDaylightSaving, KnowsAHalfHourChange) {  // Lord Howe: 02:00 becomes 02:30 on 4 October 2026, at 15:30 UTC the day before
  EXPECT_EQ(fires(cron("10 2 * * *", "Australia/Lord_Howe"), "2026-10-03T00:00:00Z", 1), (Times{"2026-10-03T15:30:00Z"}));
}

TEST(CronErrors, PointAtTheFault) {
  struct Row {
    const char* expression;
    std::size_t position;
    const char* says;
  };
  for (const auto& [expression, position, says] : std::vector<Row>{{"", 0, "empty"},
                                                                   {"* * * *", 7, "4 fields"},
                                                                   {"* * * * * * *", 12, "7 fields"},
                                                                   {"61 * * * *", 0, "0 to 59"},
                                                                   {"* 24 * * *", 2, "0 to 23"},
                                                                   {"* * 0 * *", 4, "1 to 31"},
                                                                   {"* * * foo *", 6, "JAN-DEC"},
                                                                   {"* * * * MON-", 12, "missing"},
                                                                   {"*/0 * * * *", 2, "step"},
                                                                   {"30-10 * * * *", 0, "backwards"},
                                                                   {"* * * * 1#6", 10, "1 to 5"},
                                                                   {"1,,2 * * * *", 2, "not a value"},
                                                                   {"5x * * * *", 1, "unexpected"},
                                                                   {"@every 10ms", 7, "whole seconds"},
                                                                   {"@reboot", 0, "unknown"},
                                                                   {"TZ=Mars/Olympus * * * * *", 3, "time zone"},
                                                                   {"99999999999 * * * *", 0, "0 to 59"}}) {
    const auto parsed = Cron::parse(expression);
    const auto* error = std::get_if<CronError>(&parsed);
    ASSERT_NE(error, nullptr) << expression;
    EXPECT_EQ(error->position, position) << expression << ": " << error->message;
    EXPECT_NE(error->message.find(says), std::string::npos) << expression << ": " << error->message;
  }
}

// The law: next(t) is after t, and asking from anywhere before it finds the same slot.
TEST(CronProperty, NextIsStrictlyLaterAndSkipsNothing) {
  std::mt19937 random(20261121);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution(low, high)(random); };
  const std::vector<std::string> zones{"UTC", "Europe/Madrid", "America/New_York", "Australia/Lord_Howe", "America/Mexico_City"};
  for (int round = 0; round < 400; ++round) {
    const std::string expression =
        std::to_string(pick(0, 59)) + " " + (pick(0, 1) != 0 ? "*/" + std::to_string(pick(1, 6)) : std::to_string(pick(0, 23))) + " " +
        (pick(0, 2) == 0 ? std::to_string(pick(1, 28)) : "*") + " * " + (pick(0, 2) == 0 ? std::to_string(pick(0, 6)) : "*");
    const auto parsed = cron(expression, zones[static_cast<std::size_t>(pick(0, 4))]);
    const Timestamp from = at("2026-01-01T00:00:00Z") + std::chrono::minutes(pick(0, 525600));
    const auto next = parsed.next(from);
    ASSERT_TRUE(next) << expression;
    ASSERT_GT(*next, from) << expression;
    const auto gap = std::chrono::duration_cast<std::chrono::seconds>(*next - from).count();
    const Timestamp between = from + std::chrono::seconds(std::uniform_int_distribution<std::int64_t>(0, gap - 1)(random));
    EXPECT_EQ(parsed.next(between), next) << expression << " in " << parsed.zone() << " from " << format_rfc3339(between);
  }
}

}  // namespace
}  // namespace takt
