#include "core/observe/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/text/text.h"
#include "core/time/time.h"

namespace takt {

namespace {

constexpr std::size_t kMaxValueBytes = 2048;
constexpr std::size_t kMaxLineBytes = 8192;

struct LogSettings {
  LogFormat format = LogFormat::text;
  std::string service = "takt";
  std::string id, host;  // empty: no service's
};
LogSettings& settings() {
  static LogSettings instance;
  return instance;
}

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("takt", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warn: return spdlog::level::warn;
    case LogLevel::error: return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::string_view name_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug";
    case LogLevel::info: return "info";
    case LogLevel::warn: return "warn";
    case LogLevel::error: return "error";
  }
  return "info";
}

}  // namespace

std::string LogField::number(double value) {
  char buffer[32];
  const int length = std::snprintf(buffer, sizeof buffer, "%.6g", value);
  return {buffer, static_cast<std::size_t>(length)};
}

void configure_log(LogLevel level, LogFormat format, std::string_view service) {
  settings() = {format, std::string(service), "", ""};
  logger().set_level(to_spdlog(level));
}

void identify_log(std::string_view id, std::string_view host) {
  settings().id = id;
  settings().host = host;
}

bool log_enabled(LogLevel level) { return logger().should_log(to_spdlog(level)); }

std::string format_log_text(std::string_view event, const std::vector<LogField>& fields) {
  std::string line(event);
  for (const auto& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    const std::string value = printable(field.value, kMaxValueBytes);
    if (value.empty() || value.find_first_of(" \"=") != std::string::npos) {
      line += '"';
      for (const char c : value) {
        if (c == '"' || c == '\\') line += '\\';
        line += c;
      }
      line += '"';
    } else {
      line += value;
    }
  }
  return line;
}

std::string format_log_json(std::string_view time, std::string_view level, std::string_view service, std::string_view event,
                            const std::vector<LogField>& fields, std::string_view id, std::string_view host) {
  const auto quoted = [](std::string_view text) { return nlohmann::json(printable(text, kMaxValueBytes)).dump(); };
  std::string line = "{\"time\":" + quoted(time) + ",\"level\":" + quoted(level) + ",\"service\":" + quoted(service);
  if (!id.empty()) line += ",\"id\":" + quoted(id) + ",\"host\":" + quoted(host);
  line += ",\"event\":" + quoted(event);
  for (const auto& field : fields) line += "," + quoted(field.key) + ":" + (field.bare ? field.value : quoted(field.value));
  return line + "}";
}

void log(LogLevel level, std::string_view event, const std::vector<LogField>& fields) {
  if (!log_enabled(level)) return;
  const std::string time = format_rfc3339(SystemClock().now());
  const auto& [format, service, id, host] = settings();
  std::string line = format == LogFormat::json ? format_log_json(time, name_of(level), service, event, fields, id, host)
                                               : time + " " + std::string(name_of(level)) + " " + service +
                                                     (id.empty() ? "" : " " + id + "@" + host) + ": " + format_log_text(event, fields);
  if (settings().format == LogFormat::text && line.size() > kMaxLineBytes) line.resize(kMaxLineBytes);
  logger().log(to_spdlog(level), line);
}

}  // namespace takt
