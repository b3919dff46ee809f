#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace takt {

using Duration = std::chrono::milliseconds;
/// Wall-clock time in UTC, microseconds as PostgreSQL keeps them.
using Timestamp = std::chrono::sys_time<std::chrono::microseconds>;
using SteadyTime = std::chrono::steady_clock::time_point;

/// Where time comes from. Logic takes it as a parameter, so that tests run on a clock of their own.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual Timestamp now() const = 0;
  /// Monotonic; for measuring durations.
  [[nodiscard]] virtual SteadyTime steady() const = 0;
};

/// The machine's clocks. Thread-safe.
class SystemClock final : public Clock {
 public:
  [[nodiscard]] Timestamp now() const override;
  [[nodiscard]] SteadyTime steady() const override;
};

/// "2026-11-21T07:30:00Z", with a fraction only where there is one (RFC 3339).
std::string format_rfc3339(Timestamp time);
/// Accepts any RFC 3339 date-time, offset included; nothing else.
std::optional<Timestamp> parse_rfc3339(std::string_view text);

/// "500ms", "90s", "5m", "1h30m", "7d"; units ms, s, m, h, d, w, each at most once and descending. "0" is zero.
std::optional<Duration> parse_duration(std::string_view text);
/// The shortest text that parse_duration() reads back as the same value.
std::string format_duration(Duration duration);

std::int64_t to_unix_us(Timestamp time);
Timestamp from_unix_us(std::int64_t us);
double seconds_between(SteadyTime from, SteadyTime to);

}  // namespace takt
