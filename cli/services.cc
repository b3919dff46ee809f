#include "cli/services.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <set>
#include <thread>

#include "cli/native_functions.h"
#include "core/amqp/topology.h"
#include "core/db/deadline.h"
#include "core/db/query.h"
#include "core/process/start_pages.h"
#include "core/text/text.h"
#include "dlq/archive.h"

namespace takt {

namespace {

/// When everything that runs once has run: connections are made, the first rounds are over.
constexpr timespec kSettled{5, 0};
/// Without runs there is nothing that a slow answer could save.
constexpr Duration kGraceWithoutRuns = std::chrono::seconds(2);
constexpr Duration kLastAnswer = std::chrono::seconds(1);

sigset_t end_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

/// Asks for the file before the keys: where it is missing, this is the wrong folder, and keys are not what is wrong.
ServiceIdentity identity_of(Context& context, Services::Which which, const std::string& kind) {
  static_cast<void>(context.config());
  std::vector<std::string> roles;
  if (which.dispatcher) roles.emplace_back("dispatcher");
  if (which.worker) roles.emplace_back("worker");
  if (which.archive) roles.emplace_back("archive");
  return identify_service(kind, std::move(roles), context.keys(), SystemClock().now());
}

/// Fails at once, and clearly, when the broker cannot be used.
void require_broker(Context& context, const std::string& name, const std::vector<std::string>& needed,
                    const std::vector<std::string>& all) {
  try {
    amqp::Channel channel(context.broker(name));
    declare_queues(channel, needed, all);
  } catch (const amqp::BrokerUnavailable& error) {
    throw CommandFailed(std::string("TAKT_AMQP_URL: ") + error.what());
  }
}

struct QueueOfJobs {
  std::string queue;
  static constexpr auto fields() { return std::tuple(Field("queue", &QueueOfJobs::queue)); }
};
constexpr Query<NoRequest, QueueOfJobs> kQueues{"queues_of_jobs", "SELECT DISTINCT queue FROM takt.jobs WHERE removed_at IS NULL"};

constexpr Query<NoRequest, Answer> kLed{"led", "SELECT until > now() AS is_so FROM takt.leader WHERE name = 'dispatcher'"};

}  // namespace

bool is_led(Database& database) { return query(database, kLed).at(0).is_so; }

std::vector<std::string> known_queues(Context& context) {
  const auto of_file = context.config().queues();
  std::set<std::string> queues(of_file.begin(), of_file.end());
  for (const auto& job : query(context.current_database(), kQueues)) queues.insert(job.queue);
  queues.erase(amqp::kBenchQueue);
  return {queues.begin(), queues.end()};
}

std::vector<std::string> declare_queues(amqp::Channel& channel, const std::vector<std::string>& needed,
                                        const std::vector<std::string>& all) {
  std::set<std::string> there{amqp::kDefaultQueue};
  there.insert(needed.begin(), needed.end());
  amqp::declare_topology(channel, {there.begin(), there.end()});
  for (const auto& queue : all) {
    if (!there.contains(queue) && amqp::try_declare_tick_queue(channel, queue)) there.insert(queue);
  }
  return {there.begin(), there.end()};
}

amqp::Publisher::Settings publisher_settings(const Config& config, std::vector<std::string> queues) {
  return {static_cast<std::size_t>(config.broker.window), config.broker.confirm_timeout, std::move(queues)};
}

Dispatcher::Settings dispatcher_settings(const Config& config) {
  Dispatcher::Settings settings;
  settings.scan_interval = config.dispatcher.scan_interval;
  settings.leader_lease = config.dispatcher.leader_lease;
  settings.republish_after = config.dispatcher.republish_after;
  settings.parallel_ticks = config.dispatcher.parallel_ticks;
  settings.retention = {config.retention.history, config.retention.ticks, config.retention.dead_letters, config.retention.audit};
  return settings;
}

Worker::Settings worker_settings(const Config& config) {
  Worker::Settings settings;
  settings.runs = config.worker.runs;
  settings.grace = config.worker.grace;
  settings.max_tick_age = config.worker.max_tick_age;
  settings.queues = config.worker.queues;
  settings.host_connections = config.worker.host_connections;
  settings.http_threads = config.worker.http_threads;
  settings.payload_in_errors = config.worker.payload_in_errors;
  settings.outbound = config.worker.outbound;
  settings.databases = config.databases;
  settings.native = native_functions();
  // Beside two connections to RabbitMQ, who reads /metrics, and files of certificates, the worker may open its pools, and of
  // each connection there the deadline has a copy.
  int connections = config.database.pool + 1;  // and the heartbeat's
  for (const auto& [name, database] : config.databases) connections += database.pool;
  settings.reserved_descriptors += 2 * connections;
  return settings;
}

Services::Services(Context& context, Which which, const std::string& name) : which_(which), identity_(identity_of(context, which, name)) {
  identify_log(identity_.id, identity_.host);
  // Every thread inherits the blocked signals, so that run() alone receives them.
  const auto signals = end_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  const auto& config = context.config();
  grace_ = which.worker ? config.worker.grace : kGraceWithoutRuns;
  const auto& keys = context.keys();
  auto& database = context.current_database();
  signer_ = std::make_unique<SignerCheck>(database, keys, clock_);
  signer_->ask();
  if (const auto fault = signer_->fault(true); !fault.empty()) throw CommandFailed("TAKT_SIGNING_KEYS: this process " + fault);
  const auto queues = known_queues(context);
  require_broker(context, "takt " + name, which.worker ? config.worker.queues : std::vector<std::string>{}, queues);

  publisher_ = std::make_unique<amqp::Publisher>(context.broker("takt " + name + " publisher"), publisher_settings(config, queues));
  if (which.archive) {
    archive_ = std::make_unique<Archive>(database, context.broker("takt archive"), keys, *signer_, clock_, metrics_);
  }
  if (which.worker) build_worker(context, name);
  if (which.dispatcher) {
    second_ = std::make_unique<amqp::Publisher>(context.broker("takt " + name + " second publisher"), publisher_settings(config, queues));
    lease_database_ = context.vital_database();
    auto settings = dispatcher_settings(config);
    settings.name = identity_.name();
    dispatcher_ =
        std::make_unique<Dispatcher>(database, *lease_database_, *publisher_, *second_, keys, clock_, metrics_, std::move(settings));
  }
  // Where statements that wait for locks do not keep it out, if there is such a place.
  presence_ = std::make_unique<Presence>(heartbeat_database_ ? *heartbeat_database_
                                         : lease_database_   ? *lease_database_
                                                             : database,
                                         identity_, clock_, [this, &keys] {
                                           auto sign = sign_of_life();
                                           sign.keys = shown_keys(keys, clock_.now());
                                           return sign;
                                         });
  const char* listen = std::getenv("TAKT_METRICS_LISTEN");
  status_ = std::make_unique<StatusServer>(
      listen != nullptr && *listen != '\0' ? listen : config.metrics.listen, [this] { return metrics_text(); },
      [this] { return health(); });
}

Services::~Services() = default;

void Services::build_worker(Context& context, const std::string& name) {
  heartbeat_database_ = context.vital_database();
  auto settings = worker_settings(context.config());
  settings.name = identity_.name();
  worker_ = std::make_unique<Worker>(context.database(), *heartbeat_database_, context.broker("takt " + name + " consumer"), *publisher_,
                                     context.keys(), clock_, random_, metrics_, std::move(settings));
}

std::vector<HealthPart> Services::health() const {
  std::vector<HealthPart> all;
  const auto add = [&](const std::string& service, const std::vector<HealthPart>& parts) {
    for (const auto& part : parts) all.push_back({service + "." + part.name, part.ok, part.detail});
  };
  if (dispatcher_) add("dispatcher", dispatcher_->health());
  if (worker_) add("worker", worker_->health());
  if (archive_) add("archive", archive_->health());
  return all;
}

std::string Services::metrics_text() {
  const auto parts = health();
  metrics_.database(
      std::none_of(parts.begin(), parts.end(), [](const auto& part) { return part.name.ends_with(".database") && !part.ok; }));
  return metrics_.text();
}

SignOfLife Services::sign_of_life() const {
  SignOfLife sign;
  if (worker_) {
    sign.queues = worker_->queues();
    sign.runs = worker_->runs();
    sign.places = worker_->places();
    sign.failing = worker_->failing();
  }
  if (dispatcher_ && dispatcher_->leading()) sign.waiting = publisher_->last_queue_depths();
  for (const auto& part : health()) {
    if (part.ok) continue;
    sign.ready = false;
    sign.detail += (sign.detail.empty() ? "" : "; ") + part.name + (part.detail.empty() ? "" : ": " + part.detail);
  }
  return sign;
}

void Services::run() {
  presence_->start();  // before this process leads: what it signs with is to be known then
  publisher_->start();
  if (second_) second_->start();
  if (archive_) archive_->start();
  if (worker_) worker_->start();
  if (dispatcher_) dispatcher_->start();
  log_info(
      "started",
      {{"version", identity_.version}, {"pid", identity_.pid}, {"keys", join(identity_.keys, ", ")}, {"metrics_port", status_->port()}});

  const auto signals = end_signals();
  int received = ::sigtimedwait(&signals, nullptr, &kSettled);
  if (received < 0) {
    log_debug("start pages given back", {{"bytes", give_back_start_pages()}});
    sigwait(&signals, &received);
  }
  log_info("stopping", {{"signal", received == SIGINT ? "SIGINT" : "SIGTERM"}});
  std::thread([signals] {
    int again = 0;
    sigwait(&signals, &again);
    _exit(1);
  }).detach();
  // At once, and none waits for the other's answer from PostgreSQL; when the grace is over, neither waits for one that does not come.
  std::thread hurry([this] {
    std::unique_lock lock(ending_mutex_);
    if (!ended_.wait_for(lock, grace_, [this] { return stopped_; })) limit_answer_waits(kLastAnswer);
  });
  std::thread dispatcher([this] {
    if (dispatcher_) dispatcher_->stop();
  });
  if (worker_) worker_->stop();
  dispatcher.join();
  if (archive_) archive_->stop();
  if (second_) second_->stop();
  publisher_->stop();
  presence_->stop();
  {
    const std::scoped_lock lock(ending_mutex_);
    stopped_ = true;
  }
  ended_.notify_all();
  hurry.join();
  log_info("stopped", {});
}

}  // namespace takt
