#include "dispatcher/dispatcher.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/db/retry_end.h"
#include "core/installation/troubles.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"
#include "core/process/random.h"
#include "dispatcher/gauges.h"
#include "dispatcher/lease_rescue.h"
#include "dispatcher/schedule_scan.h"
#include "dispatcher/suspects.h"

namespace takt {

namespace {

constexpr Duration kAfterFailure = std::chrono::milliseconds(500);
/// A round that has lasted so long tries no statement again; what is under way ends by database.statement_timeout. Then it has failed.
constexpr Duration kRoundDeadline = std::chrono::seconds(20);
/// How long a changed schedule may go unnoticed; one that is known is looked at when it is due.
constexpr Duration kSlotsInterval = std::chrono::seconds(1);
constexpr Duration kOffersInterval = std::chrono::seconds(5);
constexpr Duration kSweepInterval = std::chrono::milliseconds(500);
/// Where nothing has been due or under way for a while, only an enqueue can bring work, and that notifies; for a while,
/// since one that commits late may have left the notification to another (docs/schema.md, Waking up).
constexpr Duration kQuietAfter = std::chrono::seconds(5);
constexpr Duration kQuietScanInterval = std::chrono::seconds(1);
constexpr Duration kQuietSweepInterval = std::chrono::seconds(2);
constexpr Duration kRescueInterval = std::chrono::seconds(1);
constexpr Duration kSuspectsInterval = std::chrono::seconds(1);
constexpr Duration kNextSuspect = std::chrono::milliseconds(100);  // while there are some
constexpr Duration kForgottenInterval = std::chrono::seconds(5);
constexpr Duration kRetentionInterval = std::chrono::minutes(1);
/// Between batches, while there is more: others who wait for long_reads_ get it then, for a mutex knows no turns.
constexpr Duration kNextPrune = std::chrono::milliseconds(50);
constexpr Duration kAfterFailedPrune = std::chrono::seconds(10);  // the kinds that did not fail go on
constexpr Duration kPartitionsInterval = std::chrono::minutes(1);
/// How long plans may be in use that were made of an empty table: see takt.analyze_grown().
constexpr Duration kGrownInterval = std::chrono::seconds(5);
constexpr Duration kGaugesInterval = std::chrono::seconds(10);
constexpr Duration kForgettingInterval = std::chrono::minutes(1);
constexpr Duration kLedStill = std::chrono::seconds(1);  // how long gauges outlive leadership
constexpr Duration kStandby = std::chrono::milliseconds(500);
constexpr Duration kLookAgain = std::chrono::milliseconds(5);
/// After a backlog got a further tick: so that it is worked at in full after a tenth of a second, and not after one.
constexpr Duration kGrowAgain = std::chrono::milliseconds(20);
/// Slow due-scans may take a tenth of the time, and no more: where a long transaction holds back vacuum, each walks over
/// every item that was done since it began. Slow is what all of the last few were: a single one was merely unlucky.
constexpr Duration kSlowScan = std::chrono::milliseconds(5);
constexpr int kScanShare = 10;
constexpr Duration kLongestScanPause = std::chrono::seconds(5);
/// After an outage every lease is over at once, also of workers that wait with finished work: they settle it first.
constexpr Duration kBeforeRescue = std::chrono::seconds(3);
constexpr int kRescueBatch = 100;
constexpr int kPruneBatch = 5000;

}  // namespace

class Dispatcher::ScanState {
 public:
  ScanState(Database& database, Metrics& metrics, const Clock& clock, int parallel_ticks)
      : schedules(database, metrics), due(database, clock, parallel_ticks) {}
  ScheduleScan schedules;
  DueScan due;
};

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
      scan_(std::make_unique<ScanState>(database, metrics, clock, settings_.parallel_ticks)) {}

Dispatcher::~Dispatcher() { stop(); }

void Dispatcher::start() {
  const auto spawn = [&](const char* what, Round (Dispatcher::*round)(), Duration after_failure = kAfterFailure,
                         void(Dispatcher::*wait)(Duration) = &Dispatcher::pause) {
    threads_.emplace_back([=, this] { repeat(what, std::bind_front(round, this), after_failure, wait); });
  };
  spawn("lease", &Dispatcher::lease_round);
  spawn("scan", &Dispatcher::scan_round, kAfterFailure, &Dispatcher::await_work);
  // Two, also so that one batch is marked in PostgreSQL while the next is on its way to the broker.
  const auto publish = [&](amqp::Publisher& through, const amqp::Publisher& other) {
    threads_.emplace_back([this, &through, &other] {
      repeat(
          "publish", [&] { return publish_round(through, other); }, kAfterFailure);
      send_what_is_held(through);
    });
  };
  publish(publisher_, second_);
  publish(second_, publisher_);
  spawn("outbox", &Dispatcher::sweep_round);
  spawn("rescue", &Dispatcher::rescue_round);
  spawn("suspects", &Dispatcher::suspects_round);
  spawn("forgotten", &Dispatcher::forgotten_round, kForgottenInterval);
  spawn("gauges", &Dispatcher::gauges_round, kGaugesInterval);
  spawn("services", &Dispatcher::services_round);
  spawn("retention", &Dispatcher::retention_round, kAfterFailedPrune);
  spawn("partitions", &Dispatcher::partitions_round, kPartitionsInterval);
}

void Dispatcher::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  scan_wanted_.wake();
  outbox_.stop();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  try {
    leadership_.release();
  } catch (const std::exception& error) {
    log_debug("lease not released", {{"error", error.what()}});  // it runs out by itself
  }
}

void Dispatcher::repeat(const char* what, const std::function<Round()>& round, Duration after_failure,
                        void (Dispatcher::*wait_for)(Duration)) {
  ::pthread_setname_np(::pthread_self(), what);  // as top -H shows it
  bool failing = false;
  while (!stopping_) {
    Duration wait{};
    const bool led = leadership_.leading();
    try {
      const RetryEnd deadline(std::chrono::steady_clock::now() + kRoundDeadline);
      const auto next = round();
      wait = next.value_or(kStandby);
      if (failing && next) log_info("dispatcher recovered", {{"part", what}});
      failing = failing && !next;
      if (led && leadership_.leading()) metrics_.duty_done(what, clock_.now());
    } catch (const std::exception& error) {
      if (!failing) log_error("dispatcher failing", {{"part", what}, {"error", error.what()}});
      failing = true;
      metrics_.duty_failed(what);
      wait = after_failure;
    }
    const auto broker = publisher_.state();
    metrics_.broker("publisher", broker.connected, broker.blocked);
    const auto second = second_.state();
    metrics_.broker("second", second.connected, second.blocked);
    (this->*wait_for)(wait);
  }
}

void Dispatcher::pause(Duration time) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, time, [&] { return stopping_.load(); });
}

void Dispatcher::await_work(Duration time) {
  try {
    if (listener_) heard_.merge(listener_->wait_notifications(time, scan_wanted_.descriptor()));
    if (scan_wanted_.wait(listener_ ? Duration(0) : time)) heard_.insert("");
  } catch (const std::exception& error) {
    stop_listening(error.what());
  }
}

/// Scans go on without a listener, at scan_interval; so its failure is not theirs.
void Dispatcher::listen() {
  if (listener_ || database_.transaction_pooler() || clock_.steady() < next_listen_) return;
  try {
    listener_ = database_.dedicated();
    heard_.merge(listener_->wait_notifications(Duration(0)));
    if (next_listen_ != SteadyTime{}) log_info("dispatcher recovered", {{"part", "listen"}});
    next_listen_ = {};
  } catch (const std::exception& error) {
    stop_listening(error.what());
  }
}

void Dispatcher::stop_listening(const char* why) {
  if (next_listen_ == SteadyTime{}) log_error("dispatcher failing", {{"part", "listen"}, {"error", why}});
  listener_.reset();
  next_listen_ = clock_.steady() + kAfterFailure;
}

Dispatcher::Round Dispatcher::lease_round() {
  const bool leads = leadership_.try_lead();
  metrics_.leading(leads);
  if (leads != was_leading_) {
    log_info(leads ? "leading" : "standing by", {{"term", leadership_.term().number}});
    was_leading_ = leads;
    if (leads) scan_wanted_.wake();
  }
  return leads ? settings_.leader_lease / 3 : std::min(kStandby, settings_.leader_lease / 3);
}

Dispatcher::Round Dispatcher::scan_round() {
  if (!leadership_.leading()) {
    next_slots_ = next_look_ = {};
    listener_.reset();
    ask_pool();
    return std::nullopt;
  }
  const Term term = leadership_.term();
  listen();
  // A statement that PostgreSQL refuses fails alone: slots are stored though no item can be looked for, and the other way round.
  std::exception_ptr refused;
  const auto part = [&refused](const auto& deed) {
    try {
      deed();
    } catch (const DatabaseError&) {
      refused = std::current_exception();
    } catch (const SchemaChanged&) {
      refused = std::current_exception();
    }
  };
  if (!heard_.empty()) part([&] { wake_heard(term); });
  if (clock_.steady() >= next_slots_) part([&] { next_slots_ = store_slots(term); });
  // While quiet, both together: waking up costs as much as looking.
  const Duration early = quiet_ ? kQuietScanInterval / 2 : Duration(0);
  if (clock_.steady() >= std::max(next_look_ - early, not_before_)) part([&] { next_look_ = wake_due(term); });
  if (refused) std::rethrow_exception(refused);
  const auto wait = std::chrono::ceil<Duration>(std::min(next_slots_, std::max(next_look_, not_before_)) - clock_.steady());
  return std::max(wait, Duration(0));
}

/// A standby asks the pool nothing, so one whose last statement failed would stay unready until it leads.
void Dispatcher::ask_pool() {
  if (database_.healthy()) return;
  try {
    database_.exec(std::string("SELECT 1"));
  } catch (const std::exception& error) {
    log_debug("PostgreSQL still away", {{"error", error.what()}});
  }
}

/// What was enqueued goes first. Others may commit right behind it without a notification of their own (takt.enqueue), so a
/// look at everything follows shortly; it also finds what a look that fails leaves out.
void Dispatcher::wake_heard(const Term& term) {
  auto jobs = std::exchange(heard_, {});
  last_busy_ = clock_.steady();
  next_look_ = std::min(next_look_, jobs.contains("") ? SteadyTime{} : last_busy_ + kLookAgain);
  jobs.erase("");
  publish_wakes(scan_->due.wake_idle(jobs, leadership_.database_clock().now()));
  if (!jobs.empty()) publish_wakes(scan_->due.look_at(term, jobs));
}

SteadyTime Dispatcher::store_slots(const Term& term) {
  const auto began = clock_.steady();
  if (term.number != slots_term_) {
    outbox_.forget_offers();
    const auto inherited = scan_->schedules.inherit(term, Outbox::kSweepAfter);
    if (inherited.taken_back > 0) log_info("slots taken back", {{"count", inherited.taken_back}});
    outbox_.offer(inherited.ticks);
    slots_term_ = term.number;
  }
  auto slots = scan_->schedules.run_once(term, kSlotsInterval);
  if (!slots.ticks.empty()) {
    crash_point("dispatcher.after_tick_stored");
    outbox_.offer(slots.ticks);
  }
  return slots.more ? began : began + slots.next_in.value_or(kSlotsInterval);
}

void Dispatcher::publish_wakes(const std::vector<TickRow>& ticks) {
  for (const auto& tick : ticks) {
    log_debug("job woken", {{"job", tick.job}, {"tick", tick.id}});
    if (!outbox_.publish_unwatched(tick)) scan_->due.not_sent(tick.id);
  }
}

SteadyTime Dispatcher::wake_due(const Term& term) {
  const auto began = clock_.steady();
  if (const auto losses = publisher_.losses(); losses != losses_) {
    scan_->due.forget_sent();
    losses_ = losses;
  }
  DueScan::Result due;
  try {
    due = scan_->due.run_once(term);
  } catch (...) {
    quiet_ = false;  // as far as anybody knows
    throw;
  }
  if (!due.quiet) last_busy_ = clock_.steady();
  quiet_ = clock_.steady() - last_busy_ > kQuietAfter;
  last_scans_[scans_++ % last_scans_.size()] = std::chrono::floor<Duration>(clock_.steady() - began);
  const Duration took = *std::min_element(last_scans_.begin(), last_scans_.end());
  if (took >= kSlowScan) not_before_ = clock_.steady() + std::min<Duration>(took * (kScanShare - 1), kLongestScanPause);
  publish_wakes(due.ticks);
  Duration unasked = settings_.scan_interval;
  if (quiet_ && listener_) unasked = std::max(unasked, kQuietScanInterval);
  if (due.growing) unasked = std::min(unasked, kGrowAgain);
  return clock_.steady() + std::min(unasked, due.next_in.value_or(unasked));
}

Dispatcher::Round Dispatcher::publish_round(amqp::Publisher& publisher, const amqp::Publisher& other) {
  if (!leadership_.leading()) {
    outbox_.forget_offers();
    return std::nullopt;
  }
  if (!publisher.state().connected && other.state().connected) return kStandby;
  auto offered = outbox_.take_offered(kOffersInterval);
  if (!offered.empty()) outbox_.publish(publisher, leadership_.term(), std::move(offered));
  return Duration(0);
}

/// So that slots which are due while one dispatcher stops and another begins need not wait for the other's sweep.
void Dispatcher::send_what_is_held(amqp::Publisher& publisher) {
  try {
    while (leadership_.leading()) {
      auto held = outbox_.take_offered(Duration(0));
      if (held.empty() || !outbox_.publish(publisher, leadership_.term(), std::move(held))) return;
    }
  } catch (const std::exception& error) {
    log_debug("ticks left to the next leader", {{"error", error.what()}});
  }
}

Dispatcher::Round Dispatcher::sweep_round() {
  if (!leadership_.leading()) return std::nullopt;
  const Term term = leadership_.term();
  if (slots_term_ != term.number) return kLookAgain;  // what goes back to its schedule must not be sent first
  const auto swept = outbox_.sweep(term);
  if (swept.all_confirmed && (swept.more || swept.dead_letters > 0)) return Duration(0);
  return quiet_ ? kQuietSweepInterval : kSweepInterval;
}

Dispatcher::Round Dispatcher::rescue_round() {
  if (!leadership_.leading()) return std::nullopt;
  // Leases are those of unfinished ticks.
  if (quiet_ || leadership_.contact() < kBeforeRescue) return kRescueInterval;
  Rescued rescued;
  try {
    rescued = rescue_expired_leases(database_, leadership_.term(), kRescueBatch);
  } catch (...) {
    suspects_ = true;  // as far as anybody knows: some may have been rescued
    throw;
  }
  if (rescued.runs == 0) return kRescueInterval;
  log_warn("leases rescued",
           {{"runs", rescued.runs}, {"items_returned", rescued.returned}, {"suspect", rescued.suspect}, {"items_dead", rescued.dead}});
  if (rescued.suspect > 0) suspects_ = true;
  metrics_.leases_rescued(rescued.returned, rescued.dead);
  scan_wanted_.wake();
  return rescued.runs >= kRescueBatch ? Duration(0) : kRescueInterval;
}

Dispatcher::Round Dispatcher::forgotten_round() {
  if (!leadership_.leading()) return std::nullopt;
  republish_forgotten_ticks(database_, leadership_.term(), settings_.republish_after);
  return kForgottenInterval;
}

/// What is shown is the leader's alone: what it was once would lie beside what its successor shows.
Dispatcher::Round Dispatcher::gauges_round() {
  if (!leadership_.leading()) {
    metrics_.forget_leader_gauges();
    next_gauges_ = {};
    return std::nullopt;
  }
  if (clock_.steady() < next_gauges_) return kLedStill;
  auto gauges = [&] {
    const std::scoped_lock one_of_the_long(long_reads_);
    return read_gauges(database_);
  }();
  if (!leadership_.leading()) return Duration(0);
  for (const auto& [queue, messages] : publisher_.queue_depths()) gauges.queues[queue] = static_cast<double>(messages);
  metrics_.leader_gauges(gauges);
  next_gauges_ = clock_.steady() + kGaugesInterval;
  return kLedStill;
}

/// A line for each that came, and for each that went; their words also change with the seconds that they count.
void Dispatcher::tell_changes(const std::vector<Trouble>& troubles) {
  std::set<std::pair<std::string, std::string>> now;
  for (const auto& one : troubles) {
    now.emplace(one.what, one.about);
    if (!told_.contains({one.what, one.about})) log(one.meant ? LogLevel::info : LogLevel::warn, "trouble", {{"what", one.text}});
  }
  for (const auto& one : told_) {
    if (!now.contains(one)) log_info("trouble over", {{"what", one.first}, {"about", one.second}});
  }
  told_ = std::move(now);
}

Dispatcher::Round Dispatcher::services_round() {
  if (!leadership_.leading()) {
    told_.clear();
    const std::scoped_lock lock(mutex_);
    said_.clear();
    return std::nullopt;
  }
  const auto installation = read_installation(database_);
  const auto troubles = troubles_of(installation);
  std::string said;
  for (const auto& one : troubles) said += (said.empty() ? "" : "; ") + one.text;
  const auto gauges = installation_gauges(installation, troubles);
  if (leadership_.leading()) metrics_.installation(gauges);
  if (clock_.steady() >= next_forgetting_) {
    forget_gone(database_);
    next_forgetting_ = clock_.steady() + kForgettingInterval;
  }
  tell_changes(troubles);
  const std::scoped_lock lock(mutex_);
  said_ = std::move(said);
  return kServicesInterval;
}

Dispatcher::Round Dispatcher::retention_round() {
  if (!leadership_.leading()) return std::nullopt;
  const std::scoped_lock one_of_the_long(long_reads_);
  return prune_once(database_, settings_.retention, kPruneBatch).more(kPruneBatch) ? kNextPrune : kRetentionInterval;
}

Dispatcher::Round Dispatcher::partitions_round() {
  if (!leadership_.leading()) {
    partitions_end_ = 0;
    next_partitions_ = {};
    return std::nullopt;
  }
  if (const auto now = clock_.steady(); now >= next_partitions_) {
    const auto end = ensure_partitions(database_, settings_.retention.history);
    partitions_end_ = to_unix_us(end);
    metrics_.partitions_end(end);
    drop_old_partitions(database_, settings_.retention.history);
    next_partitions_ = now + kPartitionsInterval;
  }
  analyze_grown(database_);
  return kGrownInterval;
}

Dispatcher::Round Dispatcher::suspects_round() {
  if (!leadership_.leading()) {
    suspects_ = true;
    return std::nullopt;
  }
  if (!suspects_.exchange(false)) return kSuspectsInterval;
  Suspects found;
  try {
    found = wake_next_suspect(database_, leadership_.term());
  } catch (...) {
    suspects_ = true;  // as far as anybody knows
    throw;
  }
  if (found.any) suspects_ = true;
  if (found.tick) {
    log_info("suspect woken", {{"job", found.tick->job}, {"tick", found.tick->id}});
    outbox_.offer({*found.tick});
  }
  return found.any ? kNextSuspect : kSuspectsInterval;
}

std::vector<HealthPart> Dispatcher::health() const {
  const auto broker = publisher_.state();
  const bool database = database_.usable() && vital_.usable();
  std::vector<HealthPart> parts{{"database", database, database ? "" : kNoDatabase},
                                {"broker", broker.connected && !broker.blocked, broker.fault},
                                {"role", true, leadership_.leading() ? "leading" : "standing by"}};
  if (const auto end = partitions_end_.load(); end != 0) {
    parts.push_back({"partitions", from_unix_us(end) > clock_.now(), "of history end " + format_rfc3339(from_unix_us(end))});
  }
  // Told here, too; but what others lack does not make this service unready.
  const std::scoped_lock lock(mutex_);
  if (leadership_.leading()) parts.push_back({"installation", true, said_.empty() ? "no trouble" : said_});
  return parts;
}

}  // namespace takt
