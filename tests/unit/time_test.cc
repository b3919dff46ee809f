#include "core/time/time.h"

#include <gtest/gtest.h>

namespace takt {
namespace {

using namespace std::chrono_literals;

TEST(Duration, ReadsEveryUnitAndCombination) {
  const std::vector<std::pair<const char*, Duration>> table{{"0", 0ms},       {"250ms", 250ms}, {"90s", 90s}, {"5m", 5min},
                                                            {"1h30m", 90min}, {"7d", 168h},     {"2w", 336h}, {"1d2h3m4s5ms", 93784005ms}};
  for (const auto& [text, value] : table) EXPECT_EQ(parse_duration(text), value) << text;
}

TEST(Duration, RefusesWhatIsNotOne) {
  for (const char* text :
       {"", "5", "s", "-5s", "5 s", "1.5h", "5s5s", "5s1m", "5x", "99999999999999999999s", "9223372036854775807w", "1h ", "0x1s"}) {
    EXPECT_FALSE(parse_duration(text)) << text;
  }
}

TEST(Duration, WritesWhatItReads) {
  for (const auto value : {0ms, 1ms, 999ms, 1000ms, 60000ms, 5400000ms, 86400000ms, 93784005ms}) {
    EXPECT_EQ(parse_duration(format_duration(value)), value) << value.count();
  }
}

TEST(Rfc3339, RoundTripsMicroseconds) {
  for (const char* text : {"2026-11-21T07:30:00Z", "2026-11-21T07:30:00.5Z", "1999-12-31T23:59:59.999999Z", "2024-02-29T00:00:00Z"}) {
    const auto time = parse_rfc3339(text);
    ASSERT_TRUE(time) << text;
    EXPECT_EQ(format_rfc3339(*time), text);
  }
}

TEST(Rfc3339, AppliesOffsets) {
  EXPECT_EQ(parse_rfc3339("2026-11-21T09:30:00+02:00"), parse_rfc3339("2026-11-21T07:30:00Z"));
  EXPECT_EQ(parse_rfc3339("2026-11-20T23:30:00-08:00"), parse_rfc3339("2026-11-21T07:30:00Z"));
}

TEST(Rfc3339, RefusesImpossibleTimes) {
  for (const char* text : {"2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-11-21", "2026-11-21T24:00:00Z", "2026-11-21T07:30:00",
                           "2026-11-21T07:30:00Zx", "2026-11-21T07:30:00+25:00", "2026-11-21T07:30:00.Z", ""}) {
    EXPECT_FALSE(parse_rfc3339(text)) << text;
  }
}

}  // namespace
}  // namespace takt
