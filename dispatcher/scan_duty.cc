#include "dispatcher/scan_duty.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/observe/log.h"
#include "core/process/crash_point.h"

namespace takt {

namespace {

constexpr Duration kListenAgain = std::chrono::milliseconds(500);  // after a failure
/// How long a changed schedule may go unnoticed; one that is known is looked at when it is due.
constexpr Duration kSlotsInterval = std::chrono::seconds(1);
/// Where nothing has been due or under way for a while, only an enqueue can bring work, and that notifies; for a while,
/// since one that commits late may have left the notification to another (docs/schema.md, Waking up).
constexpr Duration kQuietAfter = std::chrono::seconds(5);
constexpr Duration kQuietScanInterval = std::chrono::seconds(1);
constexpr Duration kLookAgain = std::chrono::milliseconds(5);
/// After a backlog got a further tick: so that it is worked at in full after a tenth of a second, and not after one.
constexpr Duration kGrowAgain = std::chrono::milliseconds(20);
/// Slow due-scans may take a tenth of the time, and no more: where a long transaction holds back vacuum, each walks over
/// every item that was done since it began. Slow is what all of the last few were: a single one was merely unlucky.
constexpr Duration kSlowScan = std::chrono::milliseconds(5);
constexpr int kScanShare = 10;
constexpr Duration kLongestScanPause = std::chrono::seconds(5);

}  // namespace

ScanDuty::ScanDuty(const DutyContext& context, const amqp::Publisher& publisher, Settings settings)
    : Duty(context),
      publisher_(publisher),
      settings_(settings),
      schedules_(context.database, context.metrics),
      due_(context.database, context.clock, settings.parallel_ticks) {}

Duty::Round ScanDuty::run_once() {
  if (!on_.leadership.leading()) {
    next_slots_ = next_look_ = {};
    listener_.reset();
    ask_pool();
    return std::nullopt;
  }
  const Term term = on_.leadership.term();
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
  if (on_.clock.steady() >= next_slots_) part([&] { next_slots_ = store_slots(term); });
  // While quiet, both together: waking up costs as much as looking.
  const Duration early = on_.noticed.quiet ? kQuietScanInterval / 2 : Duration(0);
  if (on_.clock.steady() >= std::max(next_look_ - early, not_before_)) part([&] { next_look_ = wake_due(term); });
  if (refused) std::rethrow_exception(refused);
  const auto wait = std::chrono::ceil<Duration>(std::min(next_slots_, std::max(next_look_, not_before_)) - on_.clock.steady());
  return std::max(wait, Duration(0));
}

void ScanDuty::wait(Duration time) {
  try {
    if (listener_) heard_.merge(listener_->wait_notifications(time, on_.noticed.scan_wanted.descriptor()));
    if (on_.noticed.scan_wanted.wait(listener_ ? Duration(0) : time)) heard_.insert("");
  } catch (const std::exception& error) {
    stop_listening(error.what());
  }
}

/// A standby asks the pool nothing, so one whose last statement failed would stay unready until it leads.
void ScanDuty::ask_pool() {
  if (on_.database.healthy()) return;
  try {
    on_.database.exec(std::string("SELECT 1"));
  } catch (const std::exception& error) {
    log_debug("PostgreSQL still away", {{"error", error.what()}});
  }
}

/// Scans go on without a listener, at scan_interval; so its failure is not theirs.
void ScanDuty::listen() {
  if (listener_ || on_.database.transaction_pooler() || on_.clock.steady() < next_listen_) return;
  try {
    listener_ = on_.database.dedicated();
    heard_.merge(listener_->wait_notifications(Duration(0)));
    if (next_listen_ != SteadyTime{}) log_info("dispatcher recovered", {{"part", "listen"}});
    next_listen_ = {};
  } catch (const std::exception& error) {
    stop_listening(error.what());
  }
}

void ScanDuty::stop_listening(const char* why) {
  if (next_listen_ == SteadyTime{}) log_error("dispatcher failing", {{"part", "listen"}, {"error", why}});
  listener_.reset();
  next_listen_ = on_.clock.steady() + kListenAgain;
}

/// What was enqueued goes first. Others may commit right behind it without a notification of their own (takt.enqueue), so a
/// look at everything follows shortly; it also finds what a look that fails leaves out.
void ScanDuty::wake_heard(const Term& term) {
  auto jobs = std::exchange(heard_, {});
  last_busy_ = on_.clock.steady();
  next_look_ = std::min(next_look_, jobs.contains("") ? SteadyTime{} : last_busy_ + kLookAgain);
  jobs.erase("");
  publish_wakes(due_.wake_idle(jobs, on_.leadership.database_clock().now()));
  if (!jobs.empty()) publish_wakes(due_.look_at(term, jobs));
}

SteadyTime ScanDuty::store_slots(const Term& term) {
  const auto began = on_.clock.steady();
  if (term.number != on_.noticed.slots_term) {
    on_.outbox.forget_offers();
    const auto inherited = schedules_.inherit(term, Outbox::kSweepAfter);
    if (inherited.taken_back > 0) log_info("slots taken back", {{"count", inherited.taken_back}});
    on_.outbox.offer(inherited.ticks);
    on_.noticed.slots_term = term.number;
  }
  auto slots = schedules_.run_once(term, kSlotsInterval);
  if (!slots.ticks.empty()) {
    crash_point("dispatcher.after_tick_stored");
    on_.outbox.offer(slots.ticks);
  }
  return slots.more ? began : began + slots.next_in.value_or(kSlotsInterval);
}

void ScanDuty::publish_wakes(const std::vector<WakeTick>& ticks) {
  for (const auto& tick : ticks) {
    log_debug("job woken", {{"job", tick.job}, {"tick", tick.id}});
    if (!on_.outbox.publish_wake(tick, tick.again)) due_.not_sent(tick.id);
  }
}

SteadyTime ScanDuty::wake_due(const Term& term) {
  const auto began = on_.clock.steady();
  if (const auto losses = publisher_.losses(); losses != losses_) {
    due_.forget_sent();
    losses_ = losses;
  }
  DueScan::Result due;
  try {
    due = due_.run_once(term);
  } catch (...) {
    on_.noticed.quiet = false;  // as far as anybody knows
    throw;
  }
  if (!due.quiet) last_busy_ = on_.clock.steady();
  const bool quiet = on_.noticed.quiet = on_.clock.steady() - last_busy_ > kQuietAfter;
  last_scans_[scans_++ % last_scans_.size()] = std::chrono::floor<Duration>(on_.clock.steady() - began);
  const Duration took = *std::min_element(last_scans_.begin(), last_scans_.end());
  if (took >= kSlowScan) not_before_ = on_.clock.steady() + std::min<Duration>(took * (kScanShare - 1), kLongestScanPause);
  publish_wakes(due.ticks);
  Duration unasked = settings_.scan_interval;
  if (quiet && listener_) unasked = std::max(unasked, kQuietScanInterval);
  if (due.growing) unasked = std::min(unasked, kGrowAgain);
  return on_.clock.steady() + std::min(unasked, due.next_in.value_or(unasked));
}

}  // namespace takt
