#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/amqp/consumer.h"
#include "core/amqp/publisher.h"
#include "core/config/config.h"
#include "core/http/client.h"
#include "core/installation/signer_check.h"
#include "core/observe/status_server.h"
#include "core/process/random.h"
#include "worker/handlers/http_handler.h"
#include "worker/handlers/native_handler.h"
#include "worker/handlers/sql_handler.h"
#include "worker/intake.h"
#include "worker/run_executor.h"

namespace takt {

/// The service. Threads: one for the consumer's connection, one for the publisher's (given), `runs` that each carry a
/// tick from verification to acknowledgement, `http_threads` for HTTP, one for heartbeats and definitions, one that
/// passes on ticks for which there is no place.
/// Memory: at most `runs` deliveries a queue are held, of at most amqp::kMaxTickQueues queues of ticks and as many of wake
/// ticks, and at most `runs` batches.
/// While PostgreSQL is away the run threads wait with what they hold, and the prefetch keeps further ticks away.
class Worker {
 public:
  struct Settings {
    std::string name = random_id().substr(0, 12);  ///< this process's own, as its runs show it
    int runs = 12;
    Duration grace{};
    Duration max_tick_age{};
    std::vector<std::string> queues;  ///< "default"; empty: those of all jobs in PostgreSQL, as they come
    int host_connections = 50;
    int http_threads = 1;
    int reserved_descriptors = HttpClient::Settings().reserved_descriptors;
    bool payload_in_errors = false;
    OutboundPolicy outbound;
    std::map<std::string, NamedDatabase> databases;
    NativeFunctions native;  ///< by name; `noop` is always there
  };

  /// `vital` has a connection of its own for heartbeats and definitions: statements that wait for locks do not keep it out.
  Worker(Database& database, Database& vital, amqp::BrokerSettings broker, amqp::Publisher& publisher, const KeyRing& keys,
         const Clock& clock, Random& random, Metrics& metrics, Settings settings);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void start();
  /// Stops consuming, returns what was not begun to the queue, lets requests in flight finish within the grace period,
  /// hands the rest back, settles, acknowledges, joins. Idempotent.
  void stop();
  [[nodiscard]] std::vector<HealthPart> health() const;
  /// Whose ticks it takes at this moment; none while it stops.
  [[nodiscard]] std::vector<std::string> queues();
  /// Jobs whose latest items all failed here.
  [[nodiscard]] std::vector<FailingJob> failing() { return executor_.failing(); }
  [[nodiscard]] int runs() const { return active_.load(); }
  [[nodiscard]] int places() const { return settings_.runs; }

 private:
  void run_loop();
  void duty_loop();
  void passing_loop();
  void look_for_lacks();
  bool take(amqp::Delivery& delivery);
  void process(const amqp::Delivery& delivery);
  /// Back to the queue after a moment: for a genuine tick that cannot be begun now.
  void give_back(const amqp::Delivery& delivery);
  void put_back_uncounted(const amqp::Delivery& delivery);
  void return_counted(const amqp::Delivery& delivery);
  /// One run to its end; the run that continues it here, if one does.
  std::optional<RunExecutor::UnderWay> finish(RunExecutor::UnderWay&& under_way);
  void publish_continuation(const CatalogJob& job, const std::string& tick_id);
  [[nodiscard]] bool stopping() const { return stopping_.load(); }
  /// No place is free.
  [[nodiscard]] bool full() const { return active_.load() >= settings_.runs; }

  Database& database_;
  Database& vital_;
  amqp::Publisher& publisher_;
  const KeyRing& keys_;
  DatabaseClock clock_;  // by which ticks are verified and requests signed
  Metrics& metrics_;
  const Settings settings_;
  LogThrottle given_back_;  // ticks, since every one may be while something is away or refuses
  JobCatalog catalog_;
  SignerCheck signer_;
  Heartbeat heartbeat_;
  HttpClient http_client_;
  HttpHandler http_;
  SqlHandler sql_;
  NativeHandler native_;
  RunExecutor executor_;
  Intake intake_;

  mutable std::mutex mutex_;
  std::string lacks_;  // to do the jobs of its queues; guarded by mutex_
  std::condition_variable arrived_;
  std::condition_variable duties_ending_;
  std::condition_variable crowded_;  // a tick may have come to a worker without a free place
  struct Waiting {
    amqp::Delivery delivery;
    SteadyTime since;
  };
  std::deque<Waiting> deliveries_;       // guarded by mutex_; at most 2 × runs × queues (the prefetch)
  bool stuck_ = false;                   // no place became free while a tick waited for one; guarded by mutex_
  std::atomic<bool> stopping_{false};    // set under mutex_, so that no take() misses it
  std::atomic<bool> grace_over_{false};  // nothing waits any longer for PostgreSQL, or for a lock in it
  bool duties_end_ = false;              // guarded by mutex_
  std::atomic<int> active_{0};
  std::vector<std::thread> threads_;
  std::thread duty_thread_;
  std::thread passing_thread_;
  std::unique_ptr<amqp::Consumer> consumer_;
};

}  // namespace takt
