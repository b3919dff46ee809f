#pragma once
#include <array>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/amqp/publisher.h"
#include "core/db/database.h"
#include "core/installation/troubles.h"
#include "core/observe/metrics.h"
#include "core/observe/status_server.h"
#include "core/process/random.h"
#include "core/process/wake_up.h"
#include "core/tick/signing.h"
#include "dispatcher/due_scan.h"
#include "dispatcher/leadership.h"
#include "dispatcher/outbox.h"
#include "dispatcher/retention.h"

namespace takt {

/// The service: while it leads, it repeats the rounds of this folder; while it stands by, it only asks for the lease.
/// Each duty is a thread of its own, with its own failure, pause and metric (takt_duty_*), so none keeps another from its round:
/// lease, scan (schedules and due items; it waits for NOTIFY where PostgreSQL is reached directly), two that publish, outbox,
/// rescue, suspects, forgotten, gauges, services, retention, partitions. Each statement of theirs ends by database.statement_timeout, and a
/// round that has lasted 20 s tries none again. A failure of PostgreSQL or RabbitMQ ends no thread: it is logged once and tried again after
/// a pause.
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
  /// How long until the next one; nullopt: this dispatcher does not lead, and tried nothing.
  using Round = std::optional<Duration>;
  /// Rounds until stop(), with `wait_for` between them for as long as each says.
  void repeat(const char* what, const std::function<Round()>& round, Duration after_failure,
              void (Dispatcher::*wait_for)(Duration) = &Dispatcher::pause);
  void pause(Duration time);
  /// Until an item was enqueued, a scan is wanted, or `time` is over.
  void await_work(Duration time);
  void ask_pool();
  void listen();
  void stop_listening(const char* why);
  Round lease_round();
  Round scan_round();
  Round publish_round(amqp::Publisher& publisher, const amqp::Publisher& other);
  void send_what_is_held(amqp::Publisher& publisher);
  Round sweep_round();
  Round rescue_round();
  Round suspects_round();
  Round forgotten_round();
  Round gauges_round();
  Round services_round();
  void tell_changes(const std::vector<Trouble>& troubles);
  Round retention_round();
  Round partitions_round();
  void publish_wakes(const std::vector<TickRow>& ticks);
  void wake_heard(const Term& term);
  /// When to look again.
  SteadyTime wake_due(const Term& term);
  SteadyTime store_slots(const Term& term);

  Database& database_;
  Database& vital_;
  amqp::Publisher& publisher_;
  amqp::Publisher& second_;
  Metrics& metrics_;
  const Clock& clock_;
  const Settings settings_;
  Leadership leadership_;
  Outbox outbox_;
  class ScanState;
  std::unique_ptr<ScanState> scan_;                      // scan thread only
  SteadyTime next_slots_{}, next_look_{}, last_busy_{};  // scan thread only
  SteadyTime not_before_{};                              // due-scans were slow; scan thread only
  std::uint64_t losses_ = 0;                             // publisher_.losses() when last looked; scan thread only
  std::array<Duration, 8> last_scans_{};                 // how long they took; scan thread only
  std::size_t scans_ = 0;                                // scan thread only
  std::unique_ptr<DatabaseConnection> listener_;         // where notifications are heard; scan thread only
  SteadyTime next_listen_{};                             // zero while listening has not failed; scan thread only
  std::set<std::string> heard_;                          // jobs that were notified of, "" for all; scan thread only
  SteadyTime next_gauges_{};                             // gauges thread only
  SteadyTime next_forgetting_{};                         // services thread only
  std::set<std::pair<std::string, std::string>> told_;   // troubles that were logged, by what and about; services thread only
  SteadyTime next_partitions_{};                         // partitions thread only
  std::mutex long_reads_;                                // the long statements hold one connection at a time
  std::atomic<std::int64_t> partitions_end_{0};          // Unix microseconds; 0: not known, or not leading
  bool was_leading_ = false;                             // lease thread only
  mutable std::mutex mutex_;
  std::string said_;  // of troubles, as the leader saw them last; guarded by mutex_
  std::condition_variable changed_;
  std::atomic<std::int64_t> slots_term_{0};  // what an earlier leader stored ahead was looked at in this term
  std::atomic<bool> suspects_{true};         // there may be some
  std::atomic<bool> quiet_{false};           // nothing was due or under way in the last due-scans
  std::atomic<bool> stopping_{false};        // set under mutex_, so that no pause() misses it
  WakeUp scan_wanted_;
  std::vector<std::thread> threads_;
};

}  // namespace takt
