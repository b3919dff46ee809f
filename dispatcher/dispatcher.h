#pragma once
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/amqp/publisher.h"
#include "core/db/database.h"
#include "core/observe/metrics.h"
#include "core/observe/status_server.h"
#include "core/process/random.h"
#include "core/tick/signing.h"
#include "dispatcher/duties.h"
#include "dispatcher/leadership.h"
#include "dispatcher/outbox.h"
#include "dispatcher/retention.h"
#include "dispatcher/scan_duty.h"

namespace takt {

/// The service: while it leads, it repeats its duties' rounds; while it stands by, it only asks for the lease.
/// Each duty is a thread of its own, with its own failure, pause and metric (takt_duty_*), so none keeps another from its round:
/// lease, scan, two that publish, outbox, rescue, suspects, forgotten, gauges, services, retention, partitions. Each statement of theirs
/// ends by database.statement_timeout, and a round that has lasted 20 s tries none again. A failure of PostgreSQL or RabbitMQ ends no
/// thread: it is logged once and tried again after a pause.
class Dispatcher {
 public:
  struct Settings {
    Duration scan_interval{};
    Duration leader_lease{};
    Duration republish_after{};
    int parallel_ticks = 6;
    RetentionSettings retention;
    std::string name = random_id();  ///< this process's own, by which it holds the lease
  };

  /// `publisher` takes wake ticks, dead letters and what is published again; it shares the slots' ticks with `second`, since
  /// the broker handles what comes on one connection one after another.
  /// `vital` has a connection of its own for the lease: statements that wait for locks do not keep it out.
  Dispatcher(Database& database, Database& vital, amqp::Publisher& publisher, amqp::Publisher& second, const KeyRing& keys,
             const Clock& clock, Metrics& metrics, Settings settings);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  void start();
  /// Gives up the lease and joins the threads.
  void stop();
  [[nodiscard]] bool leading() const { return leadership_.leading(); }
  [[nodiscard]] std::vector<HealthPart> health() const;

 private:
  DutyContext context();
  /// A thread for the duty: its rounds until the dispatcher stops. `name`: in logs, metrics and `top -H`.
  void spawn(const char* name, Duty& duty, Duration after_failure);
  void repeat(const char* name, Duty& duty, Duration after_failure);

  Database& database_;
  Database& vital_;
  amqp::Publisher& publisher_;
  amqp::Publisher& second_;
  Metrics& metrics_;
  const Clock& clock_;
  const Settings settings_;
  Leadership leadership_;
  Outbox outbox_;
  StopSignal stop_;
  Noticed noticed_;
  std::mutex long_reads_;  // see RetentionDuty
  LeaseDuty lease_;
  ScanDuty scan_;
  PublishDuty publish_, publish_second_;
  SweepDuty sweep_;
  RescueDuty rescue_;
  SuspectsDuty suspects_;
  ForgottenDuty forgotten_;
  GaugesDuty gauges_;
  ServicesDuty services_;
  RetentionDuty retention_;
  PartitionsDuty partitions_;
  std::vector<std::thread> threads_;
};

}  // namespace takt
