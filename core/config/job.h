#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/time/time.h"

namespace takt {

/// When a failed item is tried again: a list of pauses (the last one repeats), or base × factor^(n-1) up to max.
struct Backoff {
  std::vector<Duration> list;  ///< empty: exponential
  Duration base = std::chrono::seconds(10);
  double factor = 2.0;
  Duration max = std::chrono::hours(1);
  bool full_jitter = true;  ///< uniform in [0, pause]; false: exactly the pause
};

/// When a destination is left alone (worker/handlers/circuit_breaker.h).
struct CircuitConfig {
  int failures = 20;                          ///< in a row; 0: never
  int rate = 80;                              ///< percent of the last 100 requests
  Duration pause = std::chrono::seconds(10);  ///< the first one; doubled each time the probe fails
  Duration max_pause = std::chrono::minutes(5);
};

struct HttpHandlerConfig {
  std::string url;
  std::string method;
  std::map<std::string, std::string> headers;
  std::string bearer_env;  ///< environment variable with the bearer token; empty: none
  Duration timeout = std::chrono::seconds(30);
  Duration connect_timeout = std::chrono::seconds(5);
  int parallel = 10;                      ///< requests of one run in flight at once
  std::int64_t max_response = 64 * 1024;  ///< bytes of a response body that are read
  std::string ca_file;                    ///< PEM with the only certificates trusted; empty: the system's
  CircuitConfig circuit;
};

struct SqlHandlerConfig {
  std::string database;
  std::string statement;  ///< $1 payload, $2 key, $3 item id, $4 attempt
};

/// A C++ function registered in the worker's binary.
struct NativeHandlerConfig {
  std::string name;
};

using HandlerConfig = std::variant<HttpHandlerConfig, SqlHandlerConfig, NativeHandlerConfig>;

enum class MisfirePolicy { skip, once, all };

struct ScheduleDefinition {
  std::string name;
  std::string cron;
  std::string time_zone = "UTC";
  MisfirePolicy misfire = MisfirePolicy::once;
  Duration misfire_after = std::chrono::seconds(60);
  int misfire_limit = 10;
  Duration misfire_max_age = std::chrono::hours(24);
  Duration jitter{0};
  std::string payload = "{}";  ///< JSON text, its numbers as they stand in the file
};

/// A job, wholly normalised: what `takt apply` stores and workers act on.
struct JobDefinition {
  std::string name;
  std::string queue = "default";
  HandlerConfig handler;
  int batch_size = 100;
  Duration time_budget = std::chrono::seconds(60);
  Duration lease = std::chrono::seconds(30);
  int max_attempts = 5;
  std::optional<Duration> max_age;
  Backoff backoff;
  Duration dedupe_window{0};
  int concurrency = 0;  ///< 0: no limit; 1: one run at a time over all workers
  bool drain = true;
  bool item_per_tick = false;
  std::vector<ScheduleDefinition> schedules;
};

/// The definition without its schedules, as stored in takt.jobs.definition.
nlohmann::json job_to_json(const JobDefinition& job);
/// Throws nlohmann::json::exception if the stored text was not written by job_to_json().
JobDefinition job_from_json(const std::string& name, const nlohmann::json& json);

std::string to_string(MisfirePolicy policy);
std::optional<MisfirePolicy> parse_misfire(std::string_view text);

}  // namespace takt
