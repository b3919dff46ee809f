#include "core/time/cron.h"

#include <date/tz.h>

namespace takt {

namespace {

using std::chrono::seconds;
constexpr int kHorizonYears = 40;

/// std::chrono on this compiler has no time-zone database; the date library has, with types of its own.
struct Segment {
  std::int64_t begin;   // Unix seconds, inclusive
  std::int64_t end;     // exclusive
  std::int64_t offset;  // local = UTC + offset
};

Segment segment_at(const date::time_zone& zone, std::int64_t unix_s) {
  const auto info = zone.get_info(date::sys_seconds(seconds(unix_s)));
  return {info.begin.time_since_epoch().count(), info.end.time_since_epoch().count(), info.offset.count()};
}

}  // namespace

bool is_time_zone(const std::string& name) {
  try {
    return date::locate_zone(name) != nullptr;
  } catch (const std::runtime_error&) {
    return false;
  }
}

std::bitset<32> Cron::days_matching(int year, unsigned month) const {
  namespace ch = std::chrono;
  const ch::year_month ym{ch::year(year), ch::month(month)};
  const unsigned last = static_cast<unsigned>((ym / ch::last).day());
  const unsigned first_weekday = ch::weekday(ch::sys_days(ym / ch::day(1))).c_encoding();
  const auto weekday_of = [&](unsigned day) { return (first_weekday + day - 1) % 7; };
  const auto nearest_weekday = [&](unsigned day) {
    const unsigned weekday = weekday_of(day);
    if (weekday == 6) return day > 1 ? day - 1 : day + 2;
    if (weekday == 0) return day < last ? day + 1 : day - 2;
    return day;
  };

  std::bitset<32> by_date = day_of_month_.days;
  for (unsigned n = 0; n < 31; ++n) {
    if (day_of_month_.before_last[n] && n < last) by_date.set(last - n);
    if (n > 0 && day_of_month_.nearest_weekday[n] && n <= last) by_date.set(nearest_weekday(n));
  }
  if (day_of_month_.nearest_weekday[31] && last == 31) by_date.set(nearest_weekday(31));
  if (day_of_month_.last_weekday) by_date.set(nearest_weekday(last));

  std::bitset<32> by_weekday;
  for (unsigned day = 1; day <= last; ++day) {
    const unsigned weekday = weekday_of(day);
    const unsigned nth = (day - 1) / 7 + 1;
    if (day_of_week_.days[weekday] || day_of_week_.nth[nth][weekday] || (day_of_week_.last[weekday] && day + 7 > last)) {
      by_weekday.set(day);
    }
  }

  // Vixie's rule: with both restricted, either will do; a field that begins with '*' restricts by "and".
  std::bitset<32> days = day_of_month_.star || day_of_week_.star ? (by_date & by_weekday) : (by_date | by_weekday);
  for (unsigned day = last + 1; day < 32; ++day) days.reset(day);
  days.reset(0);
  return days;
}

std::optional<seconds> Cron::next_time_of_day(seconds from) const {
  const auto total = from.count();
  auto h = static_cast<std::size_t>(total / 3600);
  auto m = static_cast<std::size_t>(total / 60 % 60);
  auto s = static_cast<std::size_t>(total % 60);
  for (; h < 24; ++h, m = 0, s = 0) {
    if (!hours_[h]) continue;
    for (; m < 60; ++m, s = 0) {
      if (!minutes_[m]) continue;
      for (; s < 60; ++s) {
        if (seconds_[s]) return seconds(static_cast<std::int64_t>(h * 3600 + m * 60 + s));
      }
    }
  }
  return std::nullopt;
}

std::optional<Cron::LocalTime> Cron::next_local(LocalTime from) const {
  namespace ch = std::chrono;
  const auto start_day = ch::floor<ch::days>(from);
  ch::year_month_day date{start_day};
  seconds time_of_day = from - start_day;
  unsigned first_day = static_cast<unsigned>(date.day());
  const int last_year = static_cast<int>(date.year()) + kHorizonYears;
  int year = static_cast<int>(date.year());
  unsigned month = static_cast<unsigned>(date.month());
  while (year <= last_year) {
    if (months_[month]) {
      const auto days = days_matching(year, month);
      for (unsigned day = first_day; day < 32; ++day) {
        if (days[day]) {
          if (const auto time = next_time_of_day(time_of_day)) {
            return LocalTime(ch::local_days(ch::year(year) / ch::month(month) / ch::day(day)).time_since_epoch() + *time);
          }
        }
        time_of_day = seconds(0);
      }
    }
    time_of_day = seconds(0);
    first_day = 1;
    if (++month == 13) {
      month = 1;
      ++year;
    }
  }
  return std::nullopt;
}

std::optional<Timestamp> Cron::next_in_zone(Timestamp after) const {
  const auto& zone = *date::locate_zone(zone_);
  const std::int64_t after_s = std::chrono::floor<seconds>(after).time_since_epoch().count();
  const auto local = [](std::int64_t s) { return LocalTime(seconds(s)); };
  const std::int64_t horizon = after_s + std::int64_t{kHorizonYears} * 366 * 86400;

  Segment segment = segment_at(zone, after_s);
  std::int64_t from = after_s + 1 + segment.offset;  // local seconds, inclusive
  if (!interval_) {
    // The start of this segment may repeat local times that the one before has had already.
    const Segment before = segment_at(zone, segment.begin - 1);
    from = std::max(from, segment.begin + before.offset);
  }
  while (segment.begin < horizon) {
    const auto found = next_local(local(from));
    if (!found) return std::nullopt;
    const std::int64_t candidate = found->time_since_epoch().count();
    if (candidate < segment.end + segment.offset) {
      return Timestamp(seconds(candidate - segment.offset));
    }
    const Segment following = segment_at(zone, segment.end);
    const std::int64_t old_local_end = segment.end + segment.offset;
    const std::int64_t new_local_begin = following.begin + following.offset;
    if (!interval_ && candidate < new_local_begin) {
      return Timestamp(seconds(following.begin));  // in the skipped hour: once, right after it
    }
    from = interval_ ? new_local_begin : std::max(old_local_end, new_local_begin);
    segment = following;
  }
  return std::nullopt;
}

std::optional<Timestamp> Cron::next(Timestamp after) const {
  if (at_) return *at_ > after ? at_ : std::nullopt;
  if (every_s_ > 0) {
    const std::int64_t after_s = std::chrono::floor<seconds>(after).time_since_epoch().count();
    const std::int64_t periods = after_s >= 0 ? after_s / every_s_ : (after_s - every_s_ + 1) / every_s_;
    return Timestamp(seconds((periods + 1) * every_s_));
  }
  return next_in_zone(after);
}

}  // namespace takt
