#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/context.h"
#include "core/amqp/publisher.h"
#include "core/amqp/topology.h"
#include "core/observe/metrics.h"
#include "core/process/random.h"
#include "dispatcher/dispatcher.h"
#include "worker/worker.h"

namespace takt::bench {

struct Options {
  int count = 0;         ///< items, messages or schedules; 0: the bench's own
  int seconds = 60;      ///< no measurement takes longer
  int batch_size = 0;    ///< 0: the default of a job
  int runs = 0;          ///< runs at once; 0: worker.runs of the configuration
  int connections = 50;  ///< for single enqueues and HTTP
  int payload = 200;     ///< bytes
  std::string url;       ///< destination of the HTTP bench; empty: one of its own
  bool beside_live_work = false;
};

/// One measured value.
struct Figure {
  std::string bench, measure;
  double value;
  std::string unit;
};
using Figures = std::vector<Figure>;

/// The installation while it is measured: jobs named takt-bench.*, a queue of their own, a dispatcher (which stands by if
/// another one leads) and a worker in this process. The destructor removes every trace, and the next start those of a
/// bench that was killed.
class Stand {
 public:
  /// Throws CommandFailed if other jobs have live work, unless told; the example's jobs do not count.
  Stand(Context& context, const Options& options);
  ~Stand();
  Stand(const Stand&) = delete;
  Stand& operator=(const Stand&) = delete;

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] int count(int otherwise) const { return options_.count > 0 ? options_.count : otherwise; }
  Database& database() { return database_; }
  Context& context() { return context_; }
  [[nodiscard]] const SystemClock& clock() const { return clock_; }
  amqp::Publisher& publisher() { return *publisher_; }
  Metrics& metrics() { return metrics_; }

  /// A JSON payload of about options().payload bytes.
  [[nodiscard]] std::string payload(int number) const;
  /// Stores the job, paused; its id.
  std::int64_t install(const JobDefinition& job);
  void resume(std::int64_t job);
  /// Stores `count` due items of a job, in sets of 1,000.
  void fill(const std::string& job, int count);
  void start_dispatcher();
  void start_worker(const NativeFunctions& native);
  void stop_worker();
  /// Waits until `done`; CommandFailed after options().seconds, or when interrupted.
  void wait(const std::string& what, const std::function<bool()>& done, const std::function<std::string()>& progress = {});
  /// True four times a second: what is watched must not be slowed down by the watching.
  bool may_ask();
  /// No item of the job is left, and no run holds any; false whenever it may not ask.
  bool drained(std::int64_t job);

 private:
  void refuse_live_work();
  void remove_traces();
  [[nodiscard]] std::unique_ptr<amqp::Publisher> start_publisher(const std::string& name) const;

  Context& context_;
  const Options options_;
  Database& database_;
  SystemClock clock_;
  SeededRandom random_{random_seed()};
  Metrics metrics_;
  std::vector<std::string> queues_;
  std::unique_ptr<Database> lease_database_, heartbeat_database_;
  std::unique_ptr<amqp::Publisher> publisher_, second_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<Worker> worker_;
  SteadyTime asked_{};
};

inline const std::string kQueue = amqp::kBenchQueue;

/// A job with the defaults that users get, in the bench's queue.
JobDefinition plain_job(const Stand& stand, const std::string& name, HandlerConfig handler);

/// The value below which `share` of them lie. Sorts.
double percentile(std::vector<double>& values, double share);

/// Throws CommandFailed once Ctrl-C was pressed.
void check_interrupted();

/// A local HTTP server that answers 204 to everything, on threads of its own.
class Receiver {
 public:
  Receiver();
  ~Receiver();
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  [[nodiscard]] std::string url() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One function a bench; each leaves the stand as it found it.
Figures measure_drain(Stand& stand);
Figures measure_enqueue(Stand& stand);
Figures measure_http(Stand& stand);
Figures measure_latency(Stand& stand);
Figures measure_ticks(Stand& stand);
Figures measure_schedules(Stand& stand);

}  // namespace takt::bench
