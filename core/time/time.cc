#include "core/time/time.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <limits>

namespace takt {

namespace {

using namespace std::chrono;

/// Reads exactly `digits` decimal digits at `at`, and moves past them.
std::optional<int> fixed_number(std::string_view text, std::size_t& at, std::size_t digits) {
  if (at + digits > text.size()) return std::nullopt;
  int value = 0;
  for (std::size_t i = 0; i < digits; ++i) {
    const char c = text[at + i];
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  at += digits;
  return value;
}

bool skip(std::string_view text, std::size_t& at, std::string_view any_of) {
  if (at >= text.size() || any_of.find(text[at]) == std::string_view::npos) return false;
  ++at;
  return true;
}

std::optional<microseconds> fraction(std::string_view text, std::size_t& at) {
  std::int64_t us = 0;
  int digits = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    if (digits < 6) us = us * 10 + (text[at] - '0');
    ++digits;
    ++at;
  }
  if (digits == 0) return std::nullopt;
  for (; digits < 6; ++digits) us *= 10;
  return microseconds(us);
}

std::optional<minutes> offset(std::string_view text, std::size_t& at) {
  if (skip(text, at, "Zz")) return minutes(0);
  if (at >= text.size() || (text[at] != '+' && text[at] != '-')) return std::nullopt;
  const int sign = text[at++] == '-' ? -1 : 1;
  const auto h = fixed_number(text, at, 2);
  if (!h || !skip(text, at, ":")) return std::nullopt;
  const auto m = fixed_number(text, at, 2);
  if (!m || *h > 23 || *m > 59) return std::nullopt;
  return minutes(sign * (*h * 60 + *m));
}

struct Unit {
  std::string_view name;
  std::int64_t ms;
};
constexpr std::array<Unit, 6> kUnits{
    {{"w", 7 * 86'400'000LL}, {"d", 86'400'000}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1'000}, {"ms", 1}}};

}  // namespace

Timestamp SystemClock::now() const { return time_point_cast<microseconds>(system_clock::now()); }
SteadyTime SystemClock::steady() const { return steady_clock::now(); }

std::string format_rfc3339(Timestamp time) {
  const auto day = floor<days>(time);
  const year_month_day date{day};
  const hh_mm_ss clock{time - day};
  std::array<char, 48> buffer{};
  int length =
      std::snprintf(buffer.data(), buffer.size(), "%04d-%02u-%02uT%02d:%02d:%02d", static_cast<int>(date.year()),
                    static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()), static_cast<int>(clock.hours().count()),
                    static_cast<int>(clock.minutes().count()), static_cast<int>(clock.seconds().count()));
  std::string text(buffer.data(), static_cast<std::size_t>(length));
  if (const auto us = clock.subseconds().count(); us != 0) {
    length = std::snprintf(buffer.data(), buffer.size(), ".%06d", static_cast<int>(us));
    text.append(buffer.data(), static_cast<std::size_t>(length));
    while (text.back() == '0') text.pop_back();
  }
  return text + "Z";
}

std::optional<Timestamp> parse_rfc3339(std::string_view text) {
  std::size_t at = 0;
  const auto y = fixed_number(text, at, 4);
  if (!y || !skip(text, at, "-")) return std::nullopt;
  const auto mo = fixed_number(text, at, 2);
  if (!mo || !skip(text, at, "-")) return std::nullopt;
  const auto d = fixed_number(text, at, 2);
  if (!d || !skip(text, at, "Tt ")) return std::nullopt;
  const auto h = fixed_number(text, at, 2);
  if (!h || !skip(text, at, ":")) return std::nullopt;
  const auto mi = fixed_number(text, at, 2);
  if (!mi || !skip(text, at, ":")) return std::nullopt;
  const auto s = fixed_number(text, at, 2);
  if (!s) return std::nullopt;
  microseconds us{0};
  if (skip(text, at, ".")) {
    const auto part = fraction(text, at);
    if (!part) return std::nullopt;
    us = *part;
  }
  const auto zone = offset(text, at);
  const year_month_day date{year(*y), month(static_cast<unsigned>(*mo)), day(static_cast<unsigned>(*d))};
  if (!zone || at != text.size() || !date.ok() || *h > 23 || *mi > 59 || *s > 60) return std::nullopt;
  return Timestamp(sys_days(date)) + hours(*h) + minutes(*mi) + seconds(*s) + us - *zone;
}

std::optional<Duration> parse_duration(std::string_view text) {
  if (text == "0") return Duration(0);
  std::int64_t total = 0;
  std::size_t next_unit = 0;
  while (!text.empty()) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || value < 0) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    std::size_t letters = 0;
    while (letters < text.size() && (text[letters] < '0' || text[letters] > '9')) ++letters;
    const auto name = text.substr(0, letters);
    while (next_unit < kUnits.size() && kUnits[next_unit].name != name) ++next_unit;
    if (next_unit == kUnits.size()) return std::nullopt;
    const std::int64_t ms = kUnits[next_unit++].ms;
    if (value > (std::numeric_limits<std::int64_t>::max() / 1000 - total) / ms) return std::nullopt;
    total += value * ms;
    text.remove_prefix(letters);
    if (text.empty()) return Duration(total);
  }
  return std::nullopt;
}

std::string format_duration(Duration duration) {
  std::int64_t rest = duration.count();
  if (rest == 0) return "0s";
  std::string text;
  for (const auto& unit : kUnits) {
    if (unit.name == "w") continue;
    if (const std::int64_t count = rest / unit.ms; count > 0) {
      text += std::to_string(count);
      text += unit.name;
      rest %= unit.ms;
    }
  }
  return text;
}

std::int64_t to_unix_us(Timestamp time) { return time.time_since_epoch().count(); }
Timestamp from_unix_us(std::int64_t us) { return Timestamp(microseconds(us)); }
double seconds_between(SteadyTime from, SteadyTime to) { return duration<double>(to - from).count(); }

}  // namespace takt
