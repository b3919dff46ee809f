#pragma once
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/config/job.h"
#include "core/http/outbound_policy.h"

namespace takt {

struct NamedDatabase {
  std::string url_env;
  std::string role;
  bool superuser = false;
  int pool = 4;
  Duration statement_timeout = std::chrono::seconds(30);
};

/// takt.yaml, read and judged. Field meanings and defaults: core/config/fields.cc.
struct Config {
  struct {
    int pool = 0;
    Duration connect_timeout{}, statement_timeout{}, lock_timeout{};
    bool transaction_pooler = false;
  } database;
  struct {
    Duration heartbeat{}, connect_timeout{}, confirm_timeout{};
    int window = 0;
    std::string ca_file;
  } broker;
  struct {
    Duration scan_interval{}, leader_lease{}, republish_after{};
    int parallel_ticks = 0;
  } dispatcher;
  struct {
    int runs = 0;
    Duration grace{}, max_tick_age{};
    std::vector<std::string> queues;
    int host_connections = 0, http_threads = 0;
    bool payload_in_errors = false;
    OutboundPolicy outbound;
  } worker;
  struct {
    std::string listen;
  } metrics;
  struct {
    Duration history{}, ticks{}, dead_letters{}, audit{};
  } retention;
  std::map<std::string, NamedDatabase> databases;
  std::vector<JobDefinition> jobs;
  bool has_jobs_section = false;  ///< "jobs: {}" has one, and no jobs

  /// The queues of all jobs and of the worker, "default" included; sorted, each once.
  [[nodiscard]] std::vector<std::string> queues() const;
};

/// Everything that is wrong with a file, each line "file:line: field: what; what is allowed".
class ConfigError : public std::runtime_error {
 public:
  explicit ConfigError(std::vector<std::string> faults);
  [[nodiscard]] const std::vector<std::string>& faults() const { return faults_; }

 private:
  std::vector<std::string> faults_;
};

/// Throws ConfigError with all faults at once.
Config load_config(const std::string& path);
Config parse_config(const std::string& text, const std::string& name);

}  // namespace takt
