#include "cli/bench/stand.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <thread>

#include "cli/services.h"
#include "core/amqp/topology.h"
#include "core/db/query.h"

namespace takt::bench {

namespace {

volatile std::sig_atomic_t interrupted = 0;

extern "C" void on_interrupt(int /*signal*/) { interrupted = 1; }

/// Between two looks at a drain: a look costs PostgreSQL as much as a batch.
constexpr Duration kAsk = std::chrono::milliseconds(250);
constexpr const char* kOwnJobs = "(SELECT id FROM takt.jobs WHERE name LIKE 'takt-bench.%')";

}  // namespace

void check_interrupted() {
  if (interrupted != 0) throw CommandFailed("interrupted");
}

double percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(share * static_cast<double>(values.size())))];
}

JobDefinition plain_job(const Stand& stand, const std::string& name, HandlerConfig handler) {
  JobDefinition job;
  job.name = "takt-bench." + name;
  job.queue = kQueue;
  job.handler = std::move(handler);
  if (stand.options().batch_size > 0) job.batch_size = stand.options().batch_size;
  return job;
}

Stand::Stand(Context& context, const Options& options)
    : context_(context), options_(options), database_(context.current_database()), queues_(context.config_or_defaults().queues()) {
  static_cast<void>(std::signal(SIGINT, on_interrupt));
  static_cast<void>(std::signal(SIGTERM, on_interrupt));
  refuse_live_work();
  queues_.push_back(kQueue);
  {
    amqp::Channel probe(context.broker("takt bench"));  // a broker that is away fails here, with its reason
    amqp::declare_topology(probe, queues_);
  }
  remove_traces();
  publisher_ = start_publisher("takt bench publisher");
}

namespace {
struct LiveWork : Count {
  std::string job;  ///< of one of them
  static constexpr auto fields() { return std::tuple_cat(Count::fields(), std::tuple(Field("job", &LiveWork::job))); }
};
constexpr Query<NoRequest, LiveWork> kLiveWork{
    "bench_live_work",
    "SELECT count(*) AS count, min(job) AS job FROM (SELECT j.name AS job FROM takt.items i JOIN takt.jobs j ON j.id = i.job_id"
    " WHERE j.name NOT LIKE 'takt-bench.%' AND j.name NOT LIKE 'example.%' LIMIT 1000) x"};

struct NewJob {
  std::string name, queue, definition;
  int batch_size = 0, concurrency = 0, max_attempts = 0;
  Duration dedupe_window{};
  static constexpr auto fields() {
    return std::tuple(&NewJob::name, &NewJob::queue, &NewJob::definition, &NewJob::batch_size, &NewJob::concurrency, &NewJob::max_attempts,
                      &NewJob::dedupe_window);
  }
};
struct Installed {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(Field("id", &Installed::id)); }
};
constexpr Query<NewJob, Installed> kInstall{
    "bench_install",
    "INSERT INTO takt.jobs (name, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source, paused)"
    " VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7 * interval '1 ms', 'api', true) RETURNING id::bigint AS id"};

struct NewItems {
  std::string job;
  std::vector<std::string> payloads;
  static constexpr auto fields() { return std::tuple(&NewItems::job, &NewItems::payloads); }
};
constexpr Query<NewItems, Count> kFill{"bench_fill", "SELECT count(*) AS count FROM takt.enqueue_many($1, $2::jsonb[])"};
constexpr Query<One<std::int64_t>, Answer> kDrained{
    "bench_drained",
    "SELECT NOT EXISTS (SELECT 1 FROM takt.items WHERE job_id = $1 AND state = 0)"
    " AND NOT EXISTS (SELECT 1 FROM takt.ticks WHERE job_id = $1 AND lease_until IS NOT NULL) AS is_so"};
}  // namespace

Stand::~Stand() {
  worker_.reset();
  dispatcher_.reset();
  second_.reset();
  publisher_.reset();
  try {
    remove_traces();
    amqp::Channel(context_.broker("takt bench")).delete_queue(amqp::tick_queue(kQueue));
  } catch (const std::exception& error) {
    std::cerr << "takt bench: not everything was removed, and will be at the next start: " << error.what() << "\n";
  }
}

void Stand::refuse_live_work() {
  if (options_.beside_live_work) return;
  const auto live = query(database_, kLiveWork).at(0);
  if (live.count == 0) return;
  throw CommandFailed("this database has live work (" + std::to_string(live.count) + " items or more, of " + live.job +
                      " among others), which a measurement would slow down and be slowed by; measure "
                      "elsewhere, or say --beside-live-work");
}

void Stand::remove_traces() {
  for (const char* table : {"items", "item_keys", "failed_attempts", "ended_items", "ticks", "runs", "job_locks", "schedules"}) {
    database_.exec(std::string("DELETE FROM takt.") + table + " WHERE job_id IN " + kOwnJobs);
  }
  database_.exec(std::string("DELETE FROM takt.jobs WHERE name LIKE 'takt-bench.%'"));
  amqp::Channel channel(context_.broker("takt bench"));
  channel.delete_queue(amqp::wake_queue(kQueue));
  channel.purge_queue(amqp::tick_queue(kQueue));
}

std::string Stand::payload(int number) const {
  std::string text = "{\"n\": " + std::to_string(number) + ", \"pad\": \"";
  const auto wanted = static_cast<std::size_t>(options_.payload);
  while (text.size() + 2 < wanted) text += static_cast<char>('a' + (text.size() * 7 + static_cast<std::size_t>(number)) % 26);
  return text + "\"}";
}

std::int64_t Stand::install(const JobDefinition& job) {
  return query(database_, kInstall,
               {job.name, job.queue, job_to_json(job).dump(), job.batch_size, job.concurrency, job.max_attempts, job.dedupe_window})
      .at(0)
      .id;
}

void Stand::resume(std::int64_t job) {
  database_.exec(std::string("UPDATE takt.jobs SET paused = false WHERE id = $1"), Params::of(job));
  database_.exec(std::string("NOTIFY takt_due"));
}

void Stand::fill(const std::string& job, int count) {
  for (int stored = 0; stored < count;) {
    check_interrupted();
    std::vector<std::string> payloads;
    for (int i = 0; i < 1000 && stored < count; ++i, ++stored) payloads.push_back(payload(stored));
    query(database_, kFill, {job, payloads});
  }
}

std::unique_ptr<amqp::Publisher> Stand::start_publisher(const std::string& name) const {
  auto settings = publisher_settings(context_.config_or_defaults(), queues_);
  auto publisher = std::make_unique<amqp::Publisher>(context_.broker(name), settings);
  publisher->start();
  return publisher;
}

void Stand::start_dispatcher() {
  if (dispatcher_) return;
  second_ = start_publisher("takt bench second publisher");
  lease_database_ = context_.vital_database();
  dispatcher_ = std::make_unique<Dispatcher>(database_, *lease_database_, *publisher_, *second_, context_.keys(), clock_, metrics_,
                                             dispatcher_settings(context_.config_or_defaults()));
  dispatcher_->start();
  wait("a dispatcher to lead", [&] { return is_led(database_); });
}

void Stand::start_worker(const NativeFunctions& native) {
  const auto& config = context_.config_or_defaults();
  auto settings = worker_settings(config);
  if (options_.runs > 0) settings.runs = options_.runs;
  settings.queues = {kQueue};
  settings.host_connections = std::max(config.worker.host_connections, options_.connections);
  settings.native = native;
  heartbeat_database_ = context_.vital_database();
  worker_ = std::make_unique<Worker>(database_, *heartbeat_database_, context_.broker("takt bench consumer"), *publisher_, context_.keys(),
                                     clock_, random_, metrics_, std::move(settings));
  worker_->start();
  wait("the worker to be ready", [&] {
    const auto parts = worker_->health();
    return std::all_of(parts.begin(), parts.end(), [](const HealthPart& part) { return part.ok; });
  });
}

void Stand::stop_worker() { worker_.reset(); }

void Stand::wait(const std::string& what, const std::function<bool()>& done, const std::function<std::string()>& progress) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(options_.seconds);
  const bool shows = progress && ::isatty(STDERR_FILENO) != 0;
  for (int round = 0; !done(); ++round) {
    check_interrupted();
    if (std::chrono::steady_clock::now() > end) {
      throw CommandFailed("waited " + std::to_string(options_.seconds) + " s for " + what + "; give a smaller --count or more --seconds");
    }
    if (shows && round % 20 == 0) std::cerr << "\r" << progress() << "   " << std::flush;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (shows) std::cerr << "\r\x1b[K" << std::flush;
}

bool Stand::may_ask() {
  const auto now = std::chrono::steady_clock::now();
  if (now - asked_ < kAsk) return false;
  asked_ = now;
  return true;
}

bool Stand::drained(std::int64_t job) {
  if (!may_ask()) return false;
  return query(database_, kDrained, {job}).at(0).is_so;
}

}  // namespace takt::bench
