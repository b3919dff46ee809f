#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/time/time.h"

namespace takt {

/// What only the leading dispatcher shows; counts stop at 10,000.
struct LeaderGauges {
  struct Job {
    std::string name;
    double due = 0;
    double oldest_age_s = 0;
    double blocked = 0;
    double ticks_not_begun = 0;
    double oldest_tick_s = 0;
  };
  std::vector<Job> jobs;
  std::map<std::string, double> queues;  ///< messages ready, by queue
  double dead_letters_open = 0;
  double outbox_ticks = 0;
  double outbox_dead_letters = 0;
};

/// What only the leading dispatcher shows of the other services.
struct InstallationGauges {
  std::map<std::string, double> services;  ///< that live, by role; 0 where none does
  std::map<std::string, double> workers;   ///< that live and take its ticks, by queue of the jobs
  std::map<std::string, double> troubles;  ///< how many, by what (Trouble::what); 0 where nothing is
};

/// Every metric of Takt, by the question it answers (docs/metrics.md). Thread-safe. Label values come from the
/// operator's own definitions or from enumerations, never from messages, so their number is bounded.
class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // dispatcher
  void tick_published(std::string_view source);
  void publish_failed(std::string_view outcome);
  void tick_lateness(double seconds);
  void slots_missed(std::string_view job, std::string_view policy, double count);
  void leading(bool is_leader);
  /// Replaces all that was shown: a job or queue that is not among them is shown no longer.
  void leader_gauges(const LeaderGauges& gauges);
  void installation(const InstallationGauges& gauges);
  void partitions_end(Timestamp end);
  /// Takes away these, partitions_end and duty_done: another process shows them now.
  void forget_leader_gauges();
  /// A round of a duty was done, or failed. `duty`: a name of dispatcher.cc.
  void duty_done(std::string_view duty, Timestamp at);
  void duty_failed(std::string_view duty);
  void leases_rescued(double returned, double dead);
  // worker
  void tick_received();
  void tick_duplicate();
  void tick_rejected(std::string_view reason);
  void items(std::string_view job, std::string_view item_class, double count);
  void batch_duration(std::string_view job, double seconds);
  void handler_latency(std::string_view job, double seconds);
  void handler_latencies(std::string_view job, const std::vector<double>& seconds);
  void tick_wait(double seconds);
  void runs_active(double count);
  void led(bool led);
  void circuit_open(std::string_view job, bool open);
  // dead letters
  void dead_letter(std::string_view reason);
  void dead_letters_archived(std::string_view kind);
  // parts
  void broker(std::string_view connection, bool connected, bool blocked);
  void database(bool up);

  /// The Prometheus text exposition format.
  [[nodiscard]] std::string text() const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace takt
