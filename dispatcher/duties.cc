#include "dispatcher/duties.h"

#include <algorithm>
#include <exception>

#include "core/observe/log.h"
#include "dispatcher/gauges.h"
#include "dispatcher/lease_rescue.h"
#include "dispatcher/suspects.h"

namespace takt {

namespace {

constexpr Duration kAskForLease = std::chrono::milliseconds(500);
constexpr Duration kOffersInterval = std::chrono::seconds(5);
constexpr Duration kAwayInterval = std::chrono::milliseconds(500);  // of a connection to the broker
constexpr Duration kSweepInterval = std::chrono::milliseconds(500);
constexpr Duration kQuietSweepInterval = std::chrono::seconds(2);
constexpr Duration kSlotsAwaited = std::chrono::milliseconds(5);
constexpr Duration kRescueInterval = std::chrono::seconds(1);
constexpr Duration kSuspectsInterval = std::chrono::seconds(1);
constexpr Duration kNextSuspect = std::chrono::milliseconds(100);  // while there are some
constexpr Duration kForgottenInterval = std::chrono::seconds(5);
constexpr Duration kGaugesInterval = std::chrono::seconds(10);
constexpr Duration kLedStill = std::chrono::seconds(1);  // how long gauges outlive leadership
constexpr Duration kForgettingInterval = std::chrono::minutes(1);
constexpr Duration kRetentionInterval = std::chrono::minutes(1);
/// Between batches, while there is more: others who wait for long_reads get it then, for a mutex knows no turns.
constexpr Duration kNextPrune = std::chrono::milliseconds(50);
constexpr Duration kPartitionsInterval = std::chrono::minutes(1);
/// How long plans may be in use that were made of an empty table: see takt.analyze_grown().
constexpr Duration kGrownInterval = std::chrono::seconds(5);
/// After an outage every lease is over at once, also of workers that wait with finished work: they settle it first.
constexpr Duration kBeforeRescue = std::chrono::seconds(3);
constexpr int kRescueBatch = 100;
constexpr int kPruneBatch = 5000;

}  // namespace

Duty::Round LeaseDuty::run_once() {
  const bool leads = on_.leadership.try_lead();
  on_.metrics.leading(leads);
  if (leads != was_leading_) {
    log_info(leads ? "leading" : "standing by", {{"term", on_.leadership.term().number}});
    was_leading_ = leads;
    if (leads) on_.noticed.scan_wanted.wake();
  }
  return leads ? lease_ / 3 : std::min(kAskForLease, lease_ / 3);
}

Duty::Round PublishDuty::run_once() {
  if (!on_.leadership.leading()) {
    on_.outbox.forget_offers();
    return std::nullopt;
  }
  if (!publisher_.state().connected && other_.state().connected) return kAwayInterval;
  auto offered = on_.outbox.take_offered(kOffersInterval);
  if (!offered.empty()) on_.outbox.publish(publisher_, on_.leadership.term(), std::move(offered));
  return Duration(0);
}

void PublishDuty::end() {
  try {
    while (on_.leadership.leading()) {
      auto kept = on_.outbox.take_offered(Duration(0));
      if (kept.empty() || !on_.outbox.publish(publisher_, on_.leadership.term(), std::move(kept))) return;
    }
  } catch (const std::exception& error) {
    log_debug("ticks left to the next leader", {{"error", error.what()}});
  }
}

Duty::Round SweepDuty::run_once() {
  if (!on_.leadership.leading()) return std::nullopt;
  const Term term = on_.leadership.term();
  if (on_.noticed.slots_term != term.number) return kSlotsAwaited;  // what goes back to its schedule must not be sent first
  const auto swept = on_.outbox.sweep(term);
  if (swept.all_confirmed && (swept.more || swept.dead_letters > 0)) return Duration(0);
  return on_.noticed.quiet ? kQuietSweepInterval : kSweepInterval;
}

Duty::Round RescueDuty::run_once() {
  if (!on_.leadership.leading()) return std::nullopt;
  // Leases are those of unfinished ticks.
  if (on_.noticed.quiet || on_.leadership.contact() < kBeforeRescue) return kRescueInterval;
  Rescued rescued;
  try {
    rescued = rescue_expired_leases(on_.database, on_.leadership.term(), kRescueBatch);
  } catch (...) {
    on_.noticed.suspects = true;  // as far as anybody knows: some may have been rescued
    throw;
  }
  if (rescued.runs == 0) return kRescueInterval;
  log_warn("leases rescued",
           {{"runs", rescued.runs}, {"items_returned", rescued.returned}, {"suspect", rescued.suspect}, {"items_dead", rescued.dead}});
  if (rescued.suspect > 0) on_.noticed.suspects = true;
  on_.metrics.leases_rescued(rescued.returned, rescued.dead);
  on_.noticed.scan_wanted.wake();
  return rescued.runs >= kRescueBatch ? Duration(0) : kRescueInterval;
}

Duty::Round SuspectsDuty::run_once() {
  if (!on_.leadership.leading()) {
    on_.noticed.suspects = true;
    return std::nullopt;
  }
  if (!on_.noticed.suspects.exchange(false)) return kSuspectsInterval;
  Suspects found;
  try {
    found = wake_next_suspect(on_.database, on_.leadership.term());
  } catch (...) {
    on_.noticed.suspects = true;  // as far as anybody knows
    throw;
  }
  if (found.any) on_.noticed.suspects = true;
  if (found.tick) {
    log_info("suspect woken", {{"job", found.tick->job}, {"tick", found.tick->id}});
    on_.outbox.offer({*found.tick});
  }
  return found.any ? kNextSuspect : kSuspectsInterval;
}

Duty::Round ForgottenDuty::run_once() {
  if (!on_.leadership.leading()) return std::nullopt;
  republish_forgotten_ticks(on_.database, on_.leadership.term(), republish_after_);
  return kForgottenInterval;
}

Duty::Round GaugesDuty::run_once() {
  if (!on_.leadership.leading()) {
    on_.metrics.forget_leader_gauges();
    next_ = {};
    return std::nullopt;
  }
  if (on_.clock.steady() < next_) return kLedStill;
  auto gauges = [&] {
    const std::scoped_lock one_of_the_long(long_reads_);
    return read_gauges(on_.database);
  }();
  if (!on_.leadership.leading()) return Duration(0);
  for (const auto& [queue, messages] : publisher_.queue_depths()) gauges.queues[queue] = static_cast<double>(messages);
  on_.metrics.leader_gauges(gauges);
  next_ = on_.clock.steady() + kGaugesInterval;
  return kLedStill;
}

/// A line for each that came, and for each that went; their words also change with the seconds that they count.
void ServicesDuty::tell_changes(const std::vector<Trouble>& troubles) {
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

Duty::Round ServicesDuty::run_once() {
  if (!on_.leadership.leading()) {
    told_.clear();
    say("");
    return std::nullopt;
  }
  const auto installation = read_installation(on_.database);
  const auto troubles = troubles_of(installation);
  std::string said;
  for (const auto& one : troubles) said += (said.empty() ? "" : "; ") + one.text;
  const auto gauges = installation_gauges(installation, troubles);
  if (on_.leadership.leading()) on_.metrics.installation(gauges);
  if (on_.clock.steady() >= next_forgetting_) {
    forget_gone(on_.database);
    next_forgetting_ = on_.clock.steady() + kForgettingInterval;
  }
  tell_changes(troubles);
  say(std::move(said));
  return kServicesInterval;
}

void ServicesDuty::say(std::string said) {
  const std::scoped_lock lock(mutex_);
  said_ = std::move(said);
}

std::string ServicesDuty::said() const {
  const std::scoped_lock lock(mutex_);
  return said_;
}

Duty::Round RetentionDuty::run_once() {
  if (!on_.leadership.leading()) return std::nullopt;
  const std::scoped_lock one_of_the_long(long_reads_);
  return prune_once(on_.database, settings_, kPruneBatch).more(kPruneBatch) ? kNextPrune : kRetentionInterval;
}

Duty::Round PartitionsDuty::run_once() {
  if (!on_.leadership.leading()) {
    end_ = 0;
    next_ = {};
    return std::nullopt;
  }
  if (const auto now = on_.clock.steady(); now >= next_) {
    const auto end = ensure_partitions(on_.database, history_);
    end_ = to_unix_us(end);
    on_.metrics.partitions_end(end);
    drop_old_partitions(on_.database, history_);
    next_ = now + kPartitionsInterval;
  }
  analyze_grown(on_.database);
  return kGrownInterval;
}

std::optional<Timestamp> PartitionsDuty::end_of_history() const {
  const auto end = end_.load();
  return end == 0 ? std::nullopt : std::optional(from_unix_us(end));
}

}  // namespace takt
