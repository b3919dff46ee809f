#include "core/observe/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>

namespace takt {

namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Labels = std::map<std::string, std::string>;

/// The gauges of one family that are shown at present. Not thread-safe.
class Shown {
 public:
  Shown(Family<Gauge>& family, const char* label) : family_(family), label_(label) {}
  /// Shows these values by their label and no others.
  void replace(const std::map<std::string, double>& values) {
    for (const auto& [name, value] : values) set(name, value);
    std::erase_if(gauges_, [&](const auto& shown) {
      const bool gone = !values.contains(shown.first);
      if (gone) family_.Remove(shown.second);
      return gone;
    });
  }
  void set(const std::string& name, double value) {
    auto& gauge = gauges_[name];
    if (gauge == nullptr) gauge = &family_.Add(*label_ == '\0' ? Labels{} : Labels{{label_, name}});
    gauge->Set(value);
  }

 private:
  Family<Gauge>& family_;
  const char* label_;
  std::map<std::string, Gauge*> gauges_;
};

const Histogram::BucketBoundaries kLatency{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};

}  // namespace

struct Metrics::Families {
  prometheus::Registry registry;
  Family<Counter>& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  }
  Family<Gauge>& gauge(const char* name, const char* help) { return prometheus::BuildGauge().Name(name).Help(help).Register(registry); }
  Family<Histogram>& histogram(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }

  Family<Counter>& published = counter("takt_ticks_published_total", "Ticks the broker confirmed, by source.");
  Family<Counter>& publish_failed = counter("takt_publish_failed_total", "Publishes without a confirm, by outcome.");
  Family<Histogram>& lateness = histogram("takt_tick_lateness_seconds", "From a slot's due time to the broker's confirm of its tick.");
  Family<Counter>& missed = counter("takt_slots_missed_total", "Slots that fell into an outage, by job and misfire policy.");
  Family<Gauge>& leader = gauge("takt_dispatcher_leading", "1 while this dispatcher leads.");
  Family<Gauge>& outbox_ticks = gauge("takt_outbox_ticks", "Ticks stored and not yet confirmed (counted up to 10,000).");
  Family<Gauge>& outbox_dead = gauge("takt_outbox_dead_letters", "Dead letters not yet confirmed (counted up to 10,000).");
  Family<Gauge>& due = gauge("takt_job_due_items", "Items due now, by job (counted up to 10,000).");
  Family<Gauge>& oldest = gauge("takt_job_oldest_due_seconds", "How long the oldest due item has been due, by job.");
  Family<Gauge>& blocked_items = gauge("takt_job_blocked_items", "Items that need an operator, by job (counted up to 10,000).");
  Family<Counter>& rescued = counter("takt_leases_rescued_items_total", "Items of lost workers, by what became of them.");
  Family<Gauge>& queue = gauge("takt_queue_messages", "Messages ready in a queue.");
  Family<Counter>& received = counter("takt_ticks_received_total", "Messages taken from tick queues.");
  Family<Counter>& duplicate = counter("takt_ticks_duplicate_total", "Genuine ticks whose id was seen before.");
  Family<Counter>& rejected = counter("takt_ticks_rejected_total", "Messages sent to quarantine, by reason.");
  Family<Counter>& items = counter("takt_items_total", "Items handled, by job and class.");
  Family<Histogram>& batch = histogram("takt_batch_duration_seconds", "From a run's claim to its settling, by job.");
  Family<Histogram>& handler = histogram("takt_handler_latency_seconds", "One item's handling, by job.");
  Family<Histogram>& wait = histogram("takt_tick_wait_seconds", "From a tick's due time to its run's claim.");
  Family<Gauge>& circuit = gauge("takt_circuit_open", "1 while the job's destination is left alone or tried again, by this worker.");
  Family<Gauge>& led = gauge("takt_led", "1 while a dispatcher leads, as this worker heard last.");
  Family<Gauge>& active = gauge("takt_runs_active", "Runs under way in this worker.");
  Family<Counter>& dead = counter("takt_dead_letters_total", "Items and ticks given up, by reason.");
  Family<Counter>& archived = counter("takt_dead_letters_archived_total", "Messages taken into the archive, by kind.");
  Family<Gauge>& dead_open = gauge("takt_dead_letters_open", "Dead letters neither replayed nor discarded (counted up to 10,000).");
  Family<Gauge>& broker_up = gauge("takt_broker_connected", "1 while the connection is up.");
  Family<Gauge>& broker_blocked = gauge("takt_broker_blocked", "1 while the broker blocks publishing.");
  Family<Gauge>& database_up = gauge("takt_database_up", "1 if the last use of PostgreSQL succeeded.");
  Family<Counter>& duty_failures = counter("takt_duty_failures_total", "Rounds of the dispatcher's duties that failed, by duty.");
  Family<Gauge>& duty_done =
      gauge("takt_duty_last_success_timestamp_seconds", "When the leader last did a round of a duty, by duty (Unix time).");
  Family<Gauge>& partitions_end =
      gauge("takt_history_partitions_end_timestamp_seconds", "Where the partitions of history end (Unix time).");

  Family<Gauge>& ticks_not_begun =
      gauge("takt_job_ticks_not_begun", "Ticks published and begun by no worker, by job (counted up to 10,000).");
  Family<Gauge>& oldest_tick = gauge("takt_job_oldest_tick_seconds", "How long the oldest of these has waited, by job.");
  Family<Gauge>& services = gauge("takt_services", "Services that live, by role.");
  Family<Gauge>& queue_workers = gauge("takt_queue_workers", "Workers that live and take a queue's ticks, by queue.");
  Family<Gauge>& troubles = gauge("takt_troubles", "What takt status says keeps work from being done, by what.");

  std::mutex leader_mutex;  // of what follows: what only a leader shows
  Shown shown_due{due, "job"}, shown_oldest{oldest, "job"}, shown_blocked{blocked_items, "job"}, shown_queues{queue, "queue"},
      shown_dead{dead_open, ""}, shown_outbox{outbox_ticks, ""}, shown_outbox_dead{outbox_dead, ""}, shown_duties{duty_done, "duty"},
      shown_partitions{partitions_end, ""}, shown_ticks{ticks_not_begun, "job"}, shown_oldest_tick{oldest_tick, "job"},
      shown_services{services, "role"}, shown_workers{queue_workers, "queue"}, shown_troubles{troubles, "what"};
};

Metrics::Metrics() : families_(std::make_unique<Families>()) {}
Metrics::~Metrics() = default;

void Metrics::tick_published(std::string_view source) { families_->published.Add({{"source", std::string(source)}}).Increment(); }
void Metrics::publish_failed(std::string_view outcome) { families_->publish_failed.Add({{"outcome", std::string(outcome)}}).Increment(); }
void Metrics::tick_lateness(double seconds) { families_->lateness.Add({}, kLatency).Observe(seconds); }
void Metrics::slots_missed(std::string_view job, std::string_view policy, double count) {
  families_->missed.Add({{"job", std::string(job)}, {"policy", std::string(policy)}}).Increment(count);
}
void Metrics::leading(bool is_leader) { families_->leader.Add({}).Set(is_leader ? 1 : 0); }
void Metrics::leader_gauges(const LeaderGauges& gauges) {
  std::map<std::string, double> due, oldest, blocked, ticks, oldest_tick;
  for (const auto& job : gauges.jobs) {
    due[job.name] = job.due;
    oldest[job.name] = job.oldest_age_s;
    blocked[job.name] = job.blocked;
    ticks[job.name] = job.ticks_not_begun;
    oldest_tick[job.name] = job.oldest_tick_s;
  }
  const std::scoped_lock lock(families_->leader_mutex);
  families_->shown_due.replace(due);
  families_->shown_oldest.replace(oldest);
  families_->shown_blocked.replace(blocked);
  families_->shown_ticks.replace(ticks);
  families_->shown_oldest_tick.replace(oldest_tick);
  families_->shown_queues.replace(gauges.queues);
  families_->shown_dead.set("", gauges.dead_letters_open);
  families_->shown_outbox.set("", gauges.outbox_ticks);
  families_->shown_outbox_dead.set("", gauges.outbox_dead_letters);
}
void Metrics::installation(const InstallationGauges& gauges) {
  const std::scoped_lock lock(families_->leader_mutex);
  families_->shown_services.replace(gauges.services);
  families_->shown_workers.replace(gauges.workers);
  families_->shown_troubles.replace(gauges.troubles);
}
void Metrics::partitions_end(Timestamp end) {
  const std::scoped_lock lock(families_->leader_mutex);
  families_->shown_partitions.set("", static_cast<double>(to_unix_us(end)) / 1e6);
}
void Metrics::forget_leader_gauges() {
  auto& all = *families_;
  const std::scoped_lock lock(all.leader_mutex);
  for (auto* shown : {&all.shown_due, &all.shown_oldest, &all.shown_blocked, &all.shown_queues, &all.shown_dead, &all.shown_outbox,
                      &all.shown_outbox_dead, &all.shown_duties, &all.shown_partitions, &all.shown_services, &all.shown_ticks,
                      &all.shown_oldest_tick, &all.shown_workers, &all.shown_troubles}) {
    shown->replace({});
  }
}
void Metrics::duty_done(std::string_view duty, Timestamp at) {
  const std::scoped_lock lock(families_->leader_mutex);
  families_->shown_duties.set(std::string(duty), static_cast<double>(to_unix_us(at)) / 1e6);
}
void Metrics::duty_failed(std::string_view duty) { families_->duty_failures.Add({{"duty", std::string(duty)}}).Increment(); }
void Metrics::leases_rescued(double returned, double dead) {
  families_->rescued.Add({{"outcome", "returned"}}).Increment(returned);
  families_->rescued.Add({{"outcome", "dead"}}).Increment(dead);
}
void Metrics::tick_received() { families_->received.Add({}).Increment(); }
void Metrics::tick_duplicate() { families_->duplicate.Add({}).Increment(); }
void Metrics::tick_rejected(std::string_view reason) { families_->rejected.Add({{"reason", std::string(reason)}}).Increment(); }
void Metrics::items(std::string_view job, std::string_view item_class, double count) {
  families_->items.Add({{"job", std::string(job)}, {"class", std::string(item_class)}}).Increment(count);
}
void Metrics::batch_duration(std::string_view job, double seconds) {
  families_->batch.Add({{"job", std::string(job)}}, kLatency).Observe(seconds);
}
void Metrics::handler_latency(std::string_view job, double seconds) {
  families_->handler.Add({{"job", std::string(job)}}, kLatency).Observe(seconds);
}
void Metrics::handler_latencies(std::string_view job, const std::vector<double>& seconds) {
  if (seconds.empty()) return;
  auto& histogram = families_->handler.Add({{"job", std::string(job)}}, kLatency);
  for (const double each : seconds) histogram.Observe(each);
}
void Metrics::tick_wait(double seconds) { families_->wait.Add({}, kLatency).Observe(seconds); }
void Metrics::circuit_open(std::string_view job, bool open) { families_->circuit.Add({{"job", std::string(job)}}).Set(open ? 1 : 0); }
void Metrics::led(bool led) { families_->led.Add({}).Set(led ? 1 : 0); }
void Metrics::runs_active(double count) { families_->active.Add({}).Set(count); }
void Metrics::dead_letter(std::string_view reason) { families_->dead.Add({{"reason", std::string(reason)}}).Increment(); }
void Metrics::dead_letters_archived(std::string_view kind) { families_->archived.Add({{"kind", std::string(kind)}}).Increment(); }
void Metrics::broker(std::string_view connection, bool connected, bool blocked) {
  families_->broker_up.Add({{"connection", std::string(connection)}}).Set(connected ? 1 : 0);
  families_->broker_blocked.Add({{"connection", std::string(connection)}}).Set(blocked ? 1 : 0);
}
void Metrics::database(bool up) { families_->database_up.Add({}).Set(up ? 1 : 0); }

std::string Metrics::text() const { return prometheus::TextSerializer().Serialize(families_->registry.Collect()); }

}  // namespace takt
