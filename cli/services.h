#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cli/context.h"
#include "core/amqp/publisher.h"
#include "core/installation/presence.h"
#include "core/installation/signer_check.h"
#include "core/observe/metrics.h"
#include "core/observe/status_server.h"
#include "core/process/random.h"
#include "dispatcher/dispatcher.h"
#include "worker/worker.h"

namespace takt {

class Archive;

/// Whether a dispatcher leads now.
bool is_led(Database& database);

/// The queues that the file and the database name, sorted, each once.
std::vector<std::string> known_queues(Context& context);

/// Declares what Takt needs. Throws TopologyMismatch where something of Takt's own, "default" or one of the `needed` queues exists with
/// other properties. One that only some job names is left out then, with a line in the log: it keeps nobody from the others.
/// Returns those that are there.
std::vector<std::string> declare_queues(amqp::Channel& channel, const std::vector<std::string>& needed,
                                        const std::vector<std::string>& all);

/// A publisher, a dispatcher and a worker as the configuration wants them. The publisher declares `queues` at once, others
/// when it has a tick for them.
amqp::Publisher::Settings publisher_settings(const Config& config, std::vector<std::string> queues);
Dispatcher::Settings dispatcher_settings(const Config& config);
Worker::Settings worker_settings(const Config& config);

/// The services of one process, built from the configuration, run until SIGTERM or SIGINT.
/// Building fails with CommandFailed when a key, the database or the broker is missing or unusable; once running,
/// services wait and try again instead.
class Services {
 public:
  struct Which {
    bool dispatcher = false, worker = false, archive = false;
  };
  Services(Context& context, Which which, const std::string& name);
  ~Services();
  Services(const Services&) = delete;
  Services& operator=(const Services&) = delete;

  /// Blocks until a signal, then stops everything in order: no new work, finish, settle, leave. After worker.grace (without a
  /// worker, 2 s) PostgreSQL is waited for a second at most, each time. A second signal ends the process at once.
  void run();

 private:
  void build_worker(Context& context, const std::string& name);
  [[nodiscard]] std::vector<HealthPart> health() const;
  std::string metrics_text();

  [[nodiscard]] SignOfLife sign_of_life() const;

  const Which which_;
  const ServiceIdentity identity_;
  SystemClock clock_;
  SeededRandom random_{random_seed()};
  Metrics metrics_;
  std::unique_ptr<Database> lease_database_, heartbeat_database_;
  std::unique_ptr<amqp::Publisher> publisher_, second_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<SignerCheck> signer_;
  std::unique_ptr<Archive> archive_;
  std::unique_ptr<StatusServer> status_;
  std::unique_ptr<Presence> presence_;
  Duration grace_{};  ///< from a signal until no answer is waited for any more
  std::mutex ending_mutex_;
  std::condition_variable ended_;
  bool stopped_ = false;  // guarded by ending_mutex_
};

}  // namespace takt
