#pragma once
#include <functional>
#include <set>
#include <vector>

#include "core/amqp/connection.h"

namespace takt::amqp {

/// Owns one AMQP connection and the thread that alone touches it. Consumes from queues with manual acknowledgement and
/// a prefetch per queue, which bounds what is here: prefetch × queues messages of at most kMaxBodyBytes, the queues
/// being those of the settings, at most kMaxTickQueues of consume_ticks(), and as many of wake ticks.
/// `on_delivery` runs on the connection's thread and must not block. ack() and reject() may be called from any thread.
class Consumer final : public Connection {
 public:
  struct Settings {
    std::vector<std::string> queues;  ///< names in the broker
    std::uint16_t prefetch = 16;
    std::vector<std::string> tick_queues{"default"};  ///< declared after every connect
    bool wakes = false;                               ///< of each queue of ticks that it knows, wake ticks are consumed, too
  };
  Consumer(BrokerSettings broker, Settings settings, std::function<void(Delivery&&)> on_delivery);
  ~Consumer() override;

  /// From now on these queues of ticks ("default") are consumed, too, each declared first, on the connection as it is. One
  /// that is no longer among them is consumed until its queue is deleted, or this object ends: it may hold ticks. One that
  /// exists with other properties is logged, left out and tried again later. Any thread; cheap when nothing is new.
  void consume_ticks(const std::vector<std::string>& queues);

  void ack(const Delivery& delivery);
  /// Acknowledges this one and every earlier one that is still open.
  void ack_up_to(const Delivery& delivery);
  void reject(const Delivery& delivery, bool requeue);
  /// A tick back into its queue of ticks, for another consumer or a later moment; one that came as a wake tick, too, since there
  /// its returns are counted.
  void put_back(const Delivery& delivery);
  /// No further deliveries from now on; what was delivered can still be acknowledged.
  void stop_consuming();

 private:
  enum class Verb { ack, ack_up_to, reject, requeue };
  struct Command {
    Verb verb;
    std::uint64_t epoch;
    std::uint64_t tag;
  };

  void on_connected(Channel& channel) override;
  void on_event(Channel& channel, Event&& event) override;
  void on_wake(Channel& channel) override;
  void on_lost(const std::string& why) override;
  void command(Verb verb, const Delivery& delivery);
  void resume_tick_queues(Channel& channel);
  void consume_missing(Channel& channel);
  void consume_wakes(Channel& channel);
  bool forget_tick_queue(const std::string& consumer);
  bool forget_wake_queue(const std::string& consumer);
  void send_acks(Channel& channel, std::vector<std::uint64_t>& tags);

  const Settings settings_;
  const std::function<void(Delivery&&)> on_delivery_;
  std::mutex mutex_;
  std::vector<Command> commands_;  // guarded by mutex_; at most one a delivery
  std::set<std::string> wanted_;   // queues of ticks, one a queue of the jobs; guarded by mutex_
  bool wanted_changed_ = false;    // guarded by mutex_
  std::atomic<bool> consuming_{true};
  bool cancelled_ = false;         // connection thread only
  std::uint64_t epoch_ = 0;        // connection thread only
  std::set<std::string> ticking_;  // queues of consume_ticks() that are consumed; connection thread only; at most kMaxTickQueues
  std::set<std::string> missing_;  // wanted and not consumed yet; connection thread only
  SteadyTime next_try_{};          // for what is missing; connection thread only
  std::set<std::string> waking_;   // queues whose wake ticks are consumed; connection thread only; at most kMaxTickQueues
  bool wakes_differ_ = true;       // perhaps, from the queues of ticks; connection thread only
  SteadyTime next_wakes_try_{};    // connection thread only
  std::set<std::uint64_t> open_;   // tags delivered and not yet answered; connection thread only; at most prefetch × queues
};

}  // namespace takt::amqp
