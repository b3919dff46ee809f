#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace takt {

/// One key=value of a log line. Values are escaped; numbers are written as numbers in JSON.
struct LogField {
  template <typename T>
  LogField(std::string_view field_key, const T& field_value) : key(field_key) {
    if constexpr (std::is_same_v<T, bool>) {
      value = field_value ? "true" : "false";
      bare = true;
    } else if constexpr (std::is_arithmetic_v<T>) {
      value = number(field_value);
      bare = true;
    } else {
      value = std::string(field_value);
    }
  }
  std::string_view key;
  std::string value;
  bool bare = false;

 private:
  static std::string number(double value);
  static std::string number(long long value) { return std::to_string(value); }
  template <typename T>
  static std::string number(T value) {
    if constexpr (std::is_floating_point_v<T>)
      return number(static_cast<double>(value));
    else
      return number(static_cast<long long>(value));
  }
};

enum class LogLevel { debug, info, warn, error };
enum class LogFormat { text, json };

/// Lines go to standard error, at most 8 KiB each. Call once, before threads start.
void configure_log(LogLevel level, LogFormat format, std::string_view service);

/// From now on every line names this process: "worker 6908f4245f95@web-1: …", or "id" and "host" in JSON. Call once, before
/// threads start.
void identify_log(std::string_view id, std::string_view host);

/// One event, one line: a verb first, then key=value with the same keys everywhere (tick job run item attempt).
/// Thread-safe.
void log(LogLevel level, std::string_view event, const std::vector<LogField>& fields = {});
inline void log_debug(std::string_view event, const std::vector<LogField>& fields = {}) { log(LogLevel::debug, event, fields); }
inline void log_info(std::string_view event, const std::vector<LogField>& fields = {}) { log(LogLevel::info, event, fields); }
inline void log_warn(std::string_view event, const std::vector<LogField>& fields = {}) { log(LogLevel::warn, event, fields); }
inline void log_error(std::string_view event, const std::vector<LogField>& fields = {}) { log(LogLevel::error, event, fields); }
bool log_enabled(LogLevel level);

/// The line as it would be written, without time and level. Pure; for tests and for log().
std::string format_log_text(std::string_view event, const std::vector<LogField>& fields);
std::string format_log_json(std::string_view time, std::string_view level, std::string_view service, std::string_view event,
                            const std::vector<LogField>& fields, std::string_view id = "", std::string_view host = "");

}  // namespace takt
