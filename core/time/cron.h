#pragma once
#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "core/time/time.h"

namespace takt {

/// What is wrong with an expression, and the offset of the first character that is wrong.
struct CronError {
  std::size_t position;
  std::string message;
};

/// A parsed schedule expression (the dialect: docs/cron.md). Immutable; safe to share between threads.
///
/// Five fields (minute hour day-of-month month day-of-week) or six with seconds first; lists, ranges, steps, names,
/// L, L-n, W, LW, dL, d#n; @yearly … @hourly; "@every 90s"; "@at 2026-11-21T10:00:00Z"; a leading CRON_TZ=Area/City.
///
/// Daylight saving follows cronie: times of a fixed expression that fall into a skipped hour give one slot right after
/// it, those in a repeated hour fire in its first pass only; an expression whose second, minute or hour field begins
/// with '*' is an interval and follows the wall clock.
class Cron {
 public:
  /// `zone`: an IANA name used unless the expression has CRON_TZ=. Errors in the zone are reported at position 0.
  static std::variant<Cron, CronError> parse(std::string_view expression, const std::string& zone = "UTC");

  /// The first slot strictly after `after`; nullopt if there is none within the next 40 years. Whole seconds.
  [[nodiscard]] std::optional<Timestamp> next(Timestamp after) const;

  [[nodiscard]] const std::string& zone() const { return zone_; }
  [[nodiscard]] bool is_interval() const { return interval_; }

 private:
  friend class CronParser;
  using Seconds = std::chrono::seconds;
  using LocalTime = std::chrono::local_time<Seconds>;

  /// Days of the month: a mask over 1–31 plus those that depend on the month.
  struct DayOfMonth {
    std::bitset<32> days;
    std::bitset<32> before_last;      // L-n: bit n
    std::bitset<32> nearest_weekday;  // nW: bit n
    bool last_weekday = false;        // LW
    bool star = false;
  };
  struct DayOfWeek {
    std::bitset<7> days;                  // Sunday is 0
    std::array<std::bitset<7>, 6> nth{};  // d#n: nth[n] has bit d
    std::bitset<7> last;                  // dL
    bool star = false;
  };

  [[nodiscard]] std::bitset<32> days_matching(int year, unsigned month) const;
  /// The first local time ≥ `from` whose fields match, with no regard to the zone.
  [[nodiscard]] std::optional<LocalTime> next_local(LocalTime from) const;
  [[nodiscard]] std::optional<Seconds> next_time_of_day(Seconds from) const;
  [[nodiscard]] std::optional<Timestamp> next_in_zone(Timestamp after) const;

  std::string zone_ = "UTC";
  std::bitset<60> seconds_;
  std::bitset<60> minutes_;
  std::bitset<24> hours_;
  std::bitset<13> months_;
  DayOfMonth day_of_month_;
  DayOfWeek day_of_week_;
  bool interval_ = false;
  std::int64_t every_s_ = 0;     // @every: multiples of it since the Unix epoch
  std::optional<Timestamp> at_;  // @at
};

/// True if `name` is in the system's time-zone database.
bool is_time_zone(const std::string& name);

}  // namespace takt
