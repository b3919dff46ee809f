#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace takt {

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
  void outbox(double ticks, double dead_letters);
  void job_backlog(std::string_view job, double due, double oldest_age_s);
  void job_blocked(std::string_view job, double count);
  void leases_rescued(double returned, double dead);
  void queue_messages(std::string_view queue, double count);
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
  void circuit_open(std::string_view job, bool open);
  // dead letters
  void dead_letter(std::string_view reason);
  void dead_letters_archived(std::string_view kind);
  void dead_letters_open(double count);
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
