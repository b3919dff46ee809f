#include "dispatcher/dispatcher.h"

#include <pthread.h>

#include <exception>
#include <utility>

#include "core/db/retry_end.h"
#include "core/observe/log.h"

namespace takt {

namespace {

constexpr Duration kAfterFailure = std::chrono::milliseconds(500);
/// Where the work can wait, and a line for each failure should not be many: once an interval.
constexpr Duration kAfterFailedForgotten = std::chrono::seconds(5);
constexpr Duration kAfterFailedGauges = std::chrono::seconds(10);
constexpr Duration kAfterFailedPrune = std::chrono::seconds(10);  // the kinds that did not fail go on
constexpr Duration kAfterFailedPartitions = std::chrono::minutes(1);
/// A round that has lasted so long tries no statement again; what is under way ends by database.statement_timeout. Then it has failed.
constexpr Duration kRoundDeadline = std::chrono::seconds(20);
constexpr Duration kStandby = std::chrono::milliseconds(500);

}  // namespace

Dispatcher::Dispatcher(Database& database, Database& vital, amqp::Publisher& publisher, amqp::Publisher& second, const KeyRing& keys,
                       const Clock& clock, Metrics& metrics, Settings settings)
    : database_(database),
      vital_(vital),
      publisher_(publisher),
      second_(second),
      metrics_(metrics),
      clock_(clock),
      settings_(std::move(settings)),
      leadership_(vital, settings_.leader_lease, clock, settings_.name),
      outbox_(database, publisher, keys, leadership_.database_clock(), metrics),
      lease_(context(), settings_.leader_lease),
      scan_(context(), publisher, {settings_.scan_interval, settings_.parallel_ticks}),
      publish_(context(), publisher, second),
      publish_second_(context(), second, publisher),
      sweep_(context()),
      rescue_(context()),
      suspects_(context()),
      forgotten_(context(), settings_.republish_after),
      gauges_(context(), publisher, long_reads_),
      services_(context()),
      retention_(context(), settings_.retention, long_reads_),
      partitions_(context(), settings_.retention.history) {}

Dispatcher::~Dispatcher() { stop(); }

DutyContext Dispatcher::context() { return {database_, leadership_, outbox_, metrics_, clock_, noticed_, stop_}; }

void Dispatcher::start() {
  spawn("lease", lease_, kAfterFailure);
  spawn("scan", scan_, kAfterFailure);
  spawn("publish", publish_, kAfterFailure);
  spawn("publish", publish_second_, kAfterFailure);
  spawn("outbox", sweep_, kAfterFailure);
  spawn("rescue", rescue_, kAfterFailure);
  spawn("suspects", suspects_, kAfterFailure);
  spawn("forgotten", forgotten_, kAfterFailedForgotten);
  spawn("gauges", gauges_, kAfterFailedGauges);
  spawn("services", services_, kAfterFailure);
  spawn("retention", retention_, kAfterFailedPrune);
  spawn("partitions", partitions_, kAfterFailedPartitions);
}

void Dispatcher::spawn(const char* name, Duty& duty, Duration after_failure) {
  threads_.emplace_back([this, name, &duty, after_failure] {
    repeat(name, duty, after_failure);
    duty.end();
  });
}

void Dispatcher::stop() {
  stop_.give();
  noticed_.scan_wanted.wake();
  outbox_.stop();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  try {
    leadership_.release();
  } catch (const std::exception& error) {
    log_debug("lease not released", {{"error", error.what()}});  // it runs out by itself
  }
}

void Dispatcher::repeat(const char* name, Duty& duty, Duration after_failure) {
  ::pthread_setname_np(::pthread_self(), name);
  bool failing = false;
  while (!stop_.given()) {
    Duration wait{};
    const bool led = leadership_.leading();
    try {
      const RetryEnd deadline(std::chrono::steady_clock::now() + kRoundDeadline);
      const auto next = duty.run_once();
      wait = next.value_or(kStandby);
      if (failing && next) log_info("dispatcher recovered", {{"part", name}});
      failing = failing && !next;
      if (led && leadership_.leading()) metrics_.duty_done(name, clock_.now());
    } catch (const std::exception& error) {
      if (!failing) log_error("dispatcher failing", {{"part", name}, {"error", error.what()}});
      failing = true;
      metrics_.duty_failed(name);
      wait = after_failure;
    }
    const auto broker = publisher_.state();
    metrics_.broker("publisher", broker.connected, broker.blocked);
    const auto second = second_.state();
    metrics_.broker("second", second.connected, second.blocked);
    duty.wait(wait);
  }
}

std::vector<HealthPart> Dispatcher::health() const {
  const auto broker = publisher_.state();
  const bool database = database_.usable() && vital_.usable();
  std::vector<HealthPart> parts{{"database", database, database ? "" : kNoDatabase},
                                {"broker", broker.connected && !broker.blocked, broker.fault},
                                {"role", true, leadership_.leading() ? "leading" : "standing by"}};
  if (const auto end = partitions_.end_of_history()) {
    parts.push_back({"partitions", *end > clock_.now(), "of history end " + format_rfc3339(*end)});
  }
  // Told here, too; but what others lack does not make this service unready.
  if (leadership_.leading()) {
    const auto said = services_.said();
    parts.push_back({"installation", true, said.empty() ? "no trouble" : said});
  }
  return parts;
}

}  // namespace takt
