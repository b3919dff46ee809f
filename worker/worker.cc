#include "worker/worker.h"

#include <algorithm>

#include "core/amqp/topology.h"
#include "core/db/passing.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"
#include "core/tick/tick_message.h"

namespace takt {

namespace {

constexpr Duration kDutyInterval = std::chrono::milliseconds(500);
constexpr Duration kNotNow = std::chrono::milliseconds(200);
constexpr Duration kPublishTimeout = std::chrono::seconds(10);
/// A tick's queue dead-letters what was given back 20 times (core/amqp/topology.cc).
constexpr int kGivenBack = 10;
constexpr std::size_t kMostLacks = 5;  // that are named
/// A tick that finds every place taken goes back to its queue after this time, where a worker with a free one may get it; the next
/// ones at once, until a place is free. It may get nowhere so often: then there is none, most likely, and it is passed on each
/// second, for by then there may be one.
constexpr Duration kPatience = std::chrono::milliseconds(15);
constexpr std::int64_t kPassedOn = 8;
constexpr Duration kPassedOnAgain = std::chrono::seconds(1);
/// So often goes a tick back for whose job this worker lacks a secret.
constexpr std::int64_t kLeftToOthers = 3;
/// Kinds of lines: each is one a second, whatever the number of ticks.
constexpr std::size_t kAway = 0, kFailed = 1;
constexpr Duration kCatalogInterval = std::chrono::milliseconds(900);  // every second duty: jobs and queues are met within a second

}  // namespace

Worker::Worker(Database& database, Database& vital, amqp::BrokerSettings broker, amqp::Publisher& publisher, const KeyRing& keys,
               const Clock& clock, Random& random, Metrics& metrics, Settings settings)
    : database_(database),
      vital_(vital),
      publisher_(publisher),
      keys_(keys),
      clock_(clock),
      metrics_(metrics),
      settings_(std::move(settings)),
      given_back_(clock, 2),
      catalog_(vital, clock_),
      signer_(vital, keys, clock),
      heartbeat_(vital),
      http_client_({settings_.host_connections, 4 * settings_.host_connections, settings_.outbound, settings_.reserved_descriptors,
                    settings_.http_threads}),
      http_(http_client_, keys, clock_, metrics, settings_.payload_in_errors),
      sql_(settings_.databases, clock_, metrics),
      native_(settings_.native, metrics),
      executor_(database, {http_, sql_, native_}, heartbeat_, clock_, random, metrics, settings_.name),
      intake_(database, keys, signer_, catalog_, publisher, clock_, metrics, settings_.max_tick_age) {
  amqp::Consumer::Settings consuming;
  consuming.prefetch = static_cast<std::uint16_t>(settings_.runs);
  consuming.tick_queues = settings_.queues;
  consuming.wakes = true;
  for (const auto& queue : settings_.queues) consuming.queues.push_back(amqp::tick_queue(queue));
  consumer_ = std::make_unique<amqp::Consumer>(std::move(broker), std::move(consuming), [this](amqp::Delivery&& delivery) {
    bool crowded = false;
    {
      const std::scoped_lock lock(mutex_);
      deliveries_.push_back({std::move(delivery), std::chrono::steady_clock::now()});
      crowded = full();
    }
    arrived_.notify_one();
    if (crowded) crowded_.notify_one();
  });
}

Worker::~Worker() { stop(); }

void Worker::start() {
  if (http_client_.connections() < settings_.host_connections) {
    log_warn("few file descriptors", {{"http_connections", http_client_.connections()}, {"hint", "raise the limit (ulimit -n)"}});
  }
  duty_thread_ = std::thread([this] { duty_loop(); });
  passing_thread_ = std::thread([this] { passing_loop(); });
  for (int i = 0; i < settings_.runs; ++i) threads_.emplace_back([this] { run_loop(); });
  consumer_->start();
}

void Worker::stop() {
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_.exchange(true)) return;
  }
  consumer_->stop_consuming();
  heartbeat_.for_each([](RunControl& control) { control.stop(); });
  arrived_.notify_all();
  crowded_.notify_all();
  const auto grace_end = std::chrono::steady_clock::now() + settings_.grace;
  while (active_.load() > 0 && std::chrono::steady_clock::now() < grace_end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  grace_over_ = true;
  heartbeat_.for_each([](RunControl& control) { control.cancel(); });
  for (auto& thread : threads_) thread.join();
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& waiting : deliveries_) consumer_->put_back(waiting.delivery);
    deliveries_.clear();
  }
  consumer_->stop();
  {
    const std::scoped_lock lock(mutex_);
    duties_end_ = true;
  }
  duties_ending_.notify_all();
  if (duty_thread_.joinable()) duty_thread_.join();
  if (passing_thread_.joinable()) passing_thread_.join();
}

bool Worker::take(amqp::Delivery& delivery) {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return stopping() || !deliveries_.empty(); });
  if (stopping()) return false;
  delivery = std::move(deliveries_.front().delivery);
  deliveries_.pop_front();
  ++active_;
  stuck_ = false;
  if (full() && !deliveries_.empty()) crowded_.notify_one();
  return true;
}

/// The prefetch is as large as there are places, but of each queue; and a run that goes on without a message keeps its place
/// when its tick is acknowledged.
void Worker::passing_loop() {
  std::unique_lock lock(mutex_);
  while (!stopping()) {
    const auto until = [this](const Waiting& waiting) {
      return waiting.since + (waiting.delivery.times_returned() >= kPassedOn ? kPassedOnAgain : stuck_ ? Duration() : kPatience);
    };
    const auto next =
        std::min_element(deliveries_.begin(), deliveries_.end(), [&](const auto& a, const auto& b) { return until(a) < until(b); });
    if (!full() || next == deliveries_.end()) {
      crowded_.wait(lock);
    } else if (const auto when = until(*next); std::chrono::steady_clock::now() < when) {
      crowded_.wait_until(lock, when);
    } else {
      stuck_ = true;
      const auto delivery = std::move(next->delivery);
      deliveries_.erase(next);
      lock.unlock();
      log_debug("tick passed on", {{"tick", delivery.message_id}, {"times", delivery.times_returned()}});
      put_back_uncounted(delivery);
      lock.lock();
    }
  }
}

void Worker::run_loop() {
  amqp::Delivery delivery;
  while (take(delivery)) {
    metrics_.runs_active(active_.load());
    // Whatever is thrown: nothing was committed that needs this delivery's acknowledgement.
    try {
      process(delivery);
    } catch (const DatabaseUnavailable& error) {
      if (const auto ticks = given_back_.due(kAway); ticks > 0) log_error("ticks given back", {{"ticks", ticks}, {"error", error.what()}});
      log_debug("tick given back", {{"tick", delivery.message_id}, {"times", delivery.times_returned()}});
      give_back(delivery);
    } catch (const DatabaseError& error) {
      // Of what passes the tick is not to blame: it is given back as in an outage.
      const bool passing = may_pass(error);
      if (const auto ticks = given_back_.due(kFailed); ticks > 0)
        log_error(passing ? "ticks given back" : "tick failed", {{"tick", delivery.message_id}, {"ticks", ticks}, {"error", error.what()}});
      if (passing) {
        give_back(delivery);
      } else {
        return_counted(delivery);
      }
    } catch (const std::exception& error) {
      if (const auto ticks = given_back_.due(kFailed); ticks > 0)
        log_error("tick failed", {{"tick", delivery.message_id}, {"ticks", ticks}, {"error", error.what()}});
      return_counted(delivery);
    }
    --active_;
    metrics_.runs_active(active_.load());
  }
}

/// The queue dead-letters it after 20 times.
void Worker::return_counted(const amqp::Delivery& delivery) {
  if (!stopping()) std::this_thread::sleep_for(kNotNow);
  consumer_->put_back(delivery);
}

void Worker::give_back(const amqp::Delivery& delivery) {
  if (!stopping()) std::this_thread::sleep_for(kNotNow);
  put_back_uncounted(delivery);
}

/// The queue counts what comes back and would take it for a message that nobody can handle. So it goes back as a copy, whose
/// count begins anew, before that many; a copy that is done twice is a duplicate by its id.
void Worker::put_back_uncounted(const amqp::Delivery& delivery) {
  const bool whole = delivery.body.size() == delivery.body_size;
  if (stopping() || delivery.times_returned() < kGivenBack || !whole) return consumer_->put_back(delivery);
  amqp::Message copy;
  copy.exchange = amqp::kTicksExchange;
  copy.routing_key = delivery.routing_key;
  copy.content_type = delivery.content_type;
  copy.message_id = delivery.message_id;
  for (const char* name : {"webhook-id", "webhook-timestamp", "webhook-signature"}) {
    if (auto value = delivery.header(name)) copy.headers[name] = std::move(*value);
  }
  copy.body = delivery.body;
  if (publisher_.publish(std::move(copy), kPublishTimeout) == amqp::Outcome::confirmed) return consumer_->ack(delivery);
  consumer_->put_back(delivery);
}

void Worker::process(const amqp::Delivery& delivery) {
  auto verdict = intake_.judge(delivery);
  if (std::holds_alternative<NotNow>(verdict)) return give_back(delivery);
  if (std::holds_alternative<Disposed>(verdict)) {
    consumer_->ack(delivery);
    return;
  }
  const auto& accepted = std::get<AcceptedTick>(verdict);
  metrics_.tick_wait(std::chrono::duration<double>(clock_.now() - get_timestamp(accepted.tick.due_at())).count());
  // Whoever has what is missing here takes it. Nobody does, most likely, where it has been round: then it must keep no place.
  if (!accepted.tick.dry_run() && !executor_.lacks(accepted.job->definition).empty()) {
    if (stopping() || delivery.times_returned() < kLeftToOthers) return consumer_->put_back(delivery);
    executor_.put_off(*accepted.job, accepted.tick);
    return consumer_->ack(delivery);
  }
  if (const auto pause = executor_.leaves_alone(accepted.job->definition, accepted.tick)) {
    log_debug("tick declined", {{"tick", accepted.tick.id()}, {"job", accepted.tick.job()}});
    if (!delivery.redelivered) return consumer_->put_back(delivery);  // most likely another worker gets it then
    executor_.hold(*accepted.job, *pause);
    return consumer_->ack(delivery);
  }
  const auto stopping = [this] { return stopping_.load(); };
  // Settled and committed before acknowledged: a crash in between redelivers the tick, and the ledger turns the repeat
  // into a duplicate. The other order would lose the run.
  auto next = executor_.begin(accepted.job, accepted.tick, stopping);
  if (next) next = finish(std::move(*next));
  crash_point("worker.before_ack");
  consumer_->ack(delivery);
  crash_point("worker.after_ack");
  try {
    while (next) next = finish(std::move(*next));
  } catch (const std::exception& error) {
    log_error("run failed", {{"job", accepted.job->definition.name},
                             {"error", error.what()}});  // nothing renews its lease now, which brings its items back
  }
}

std::optional<RunExecutor::UnderWay> Worker::finish(RunExecutor::UnderWay&& under_way) {
  const auto stopping = [this] { return stopping_.load(); };
  const auto grace_over = [this] { return grace_over_.load(); };
  const auto job = under_way.job;
  auto outcome = executor_.finish(std::move(under_way), {grace_over, stopping}, [&]() -> std::shared_ptr<const CatalogJob> {
    // Another tick waits: this job's backlog goes on behind it, through the queue.
    const std::scoped_lock lock(mutex_);
    if (stopping_ || !deliveries_.empty()) return nullptr;
    return catalog_.known(job->definition.name);
  });
  if (!outcome.next_tick_id.empty()) publish_continuation(*job, outcome.next_tick_id);
  return std::move(outcome.next);
}

void Worker::publish_continuation(const CatalogJob& job, const std::string& tick_id) {
  crash_point("worker.before_continuation");
  const TickRow next{tick_id, job.definition.name, job.definition.queue, "more", clock_.now(), {}};
  // Its row is stored: if this message is lost, the due-scan replaces it.
  if (publisher_.publish_unwatched(*tick_message(next, keys_, clock_.now()))) metrics_.tick_published("more");
}

void Worker::duty_loop() {
  bool failing = false;
  SteadyTime next_catalog{};
  for (bool ending = false; !ending;) {
    try {
      heartbeat_.beat(std::chrono::steady_clock::now());
      if (std::chrono::steady_clock::now() >= next_catalog) {
        catalog_.refresh();
        signer_.ask();
        metrics_.led(signer_.led());
        executor_.circuits().refresh(vital_, {&http_.circuits(), &sql_.circuits()});
        look_for_lacks();
        if (settings_.queues.empty()) consumer_->consume_ticks(catalog_.queues());
        next_catalog = std::chrono::steady_clock::now() + kCatalogInterval;
      }
      if (failing) log_info("worker recovered", {});
      failing = false;
    } catch (const std::exception& error) {
      metrics_.led(false);  // nobody is heard of
      if (!failing) log_error("worker failing", {{"part", "heartbeat"}, {"error", error.what()}});
      failing = true;
    }
    const auto consuming = consumer_->state();
    metrics_.broker("consumer", consuming.connected, consuming.blocked);
    const auto publishing = publisher_.state();
    metrics_.broker("publisher", publishing.connected, publishing.blocked);
    std::unique_lock lock(mutex_);
    ending = duties_ending_.wait_for(lock, kDutyInterval, [this] { return duties_end_; });
  }
}

/// Told once for each change, and by health() as long as it is so.
void Worker::look_for_lacks() {
  if (stopping()) return;
  std::string lacks;
  std::size_t jobs = 0;
  const auto& own = settings_.queues;  // empty: all
  for (const auto& job : catalog_.jobs()) {
    if (!own.empty() && std::find(own.begin(), own.end(), job->definition.queue) == own.end()) continue;
    const auto lack = executor_.lacks(job->definition);
    if (lack.empty() || ++jobs > kMostLacks) continue;
    lacks += (lacks.empty() ? "" : "; ") + std::string("job ") + job->definition.name + ": " + lack;
  }
  if (jobs > kMostLacks) lacks += "; and " + std::to_string(jobs - kMostLacks) + " jobs more";
  {
    const std::scoped_lock lock(mutex_);
    if (lacks == lacks_) return;
    lacks_ = lacks;
  }
  if (lacks.empty()) return log_info("set-up complete", {});
  log_error("set-up incomplete", {{"lacks", lacks}, {"then", "these jobs' items are left to other workers, and spend no attempts"}});
}

std::vector<std::string> Worker::queues() {
  if (stopping()) return {};
  return settings_.queues.empty() ? catalog_.queues() : settings_.queues;
}

std::vector<HealthPart> Worker::health() const {
  const auto consuming = consumer_->state();
  const auto publishing = publisher_.state();
  const bool database = database_.usable() && vital_.usable();
  const std::scoped_lock lock(mutex_);
  return {{"database", database, database ? "" : kNoDatabase},
          {"consumer", consuming.connected, consuming.fault},
          {"publisher", publishing.connected && !publishing.blocked, publishing.fault},
          {"setup", lacks_.empty(), lacks_},
          {"leader", true, signer_.led() ? "" : "no dispatcher leads: schedules do not tick and nothing is woken"},
          {"keys", signer_.verdict() != SignerCheck::Verdict::lacks, signer_.fault()},
          {"work", !stopping(), stopping() ? "stopping" : std::to_string(active_.load()) + " runs active"}};
}

}  // namespace takt
