#pragma once
#include <deque>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "core/amqp/connection.h"

namespace takt::amqp {

enum class Outcome {
  confirmed,   ///< the broker has it: on disk, on a majority, unless the message is transient
  refused,     ///< the broker said no (queue full)
  unroutable,  ///< no queue is bound for it
  lost,        ///< the connection went away first; it may or may not have arrived
  timed_out,   ///< no answer in time, or the broker is blocked; it may or may not arrive
};
std::string_view to_string(Outcome outcome);

/// Owns one AMQP connection and the thread that alone touches it. Publishes with confirms, and mandatory.
/// publish_all() may be called from any thread; it returns when the broker has answered for every message.
/// At most `window` messages are outstanding: waiting or unconfirmed (bounded memory); past that publish_all() waits.
/// While the broker blocks publishing, messages wait here and nothing is sent.
///
/// A message with a detour takes it where the broker returns or refuses it, or says nothing for 200 ms; so, from the start, do
/// those that follow with the same routing key, for a second, or for five where the broker did not return it. It may then
/// arrive twice.
class Publisher final : public Connection {
 public:
  struct Settings {
    std::size_t window = 1000;
    /// The connection is given up when a message has waited this long for its confirm and the broker does not block, and
    /// when it is this old and the broker refuses a message on it. A channel that met a quorum queue while its leader was
    /// gone may owe a confirm for ever (rabbitmq-server pull request 14589), or refuse for ever (3.10, looking for the
    /// leader on the node that died); a new one does neither.
    Duration confirm_timeout = std::chrono::seconds(5);
    /// Declared after every connect; any other queue of ticks is declared before the first message for it.
    std::vector<std::string> queues{"default"};
  };
  Publisher(BrokerSettings broker, Settings settings);
  ~Publisher() override;

  /// One outcome a message, in order. Each is known within `timeout`.
  std::vector<Outcome> publish_all(std::vector<Message> messages, Duration timeout);
  Outcome publish(Message message, Duration timeout);
  /// Messages ready in each of Takt's queues that this publisher has declared, as of the last answer, and asks the broker for newer ones.
  /// Empty until the first answer. Never waits.
  std::map<std::string, std::uint64_t> queue_depths();
  /// The same without asking: an answer that does not come keeps the connection from noticing a confirm that does not.
  [[nodiscard]] std::map<std::string, std::uint64_t> last_queue_depths() const;
  /// How often messages given to this object may have been lost, with a connection or with a queue that had taken them before
  /// it stopped to. Any thread.
  [[nodiscard]] std::uint64_t losses() const { return losses_.load(); }
  /// Publishes and forgets: for messages whose loss changes nothing but latency. False if there is no room now.
  bool publish_unwatched(Message message);

 private:
  struct Batch;
  /// What is known of where messages with a detour go.
  struct Way {
    bool straight = false;  ///< the last one that was answered was taken at once
    SteadyTime not_before{};
  };
  struct Entry {
    Message message;
    std::shared_ptr<Batch> batch;  // null: nobody waits
    std::size_t index = 0;
    bool returned = false;
    SteadyTime sent{};
  };

  void on_connected(Channel& channel) override;
  void on_event(Channel& channel, Event&& event) override;
  void on_wake(Channel& channel) override;
  void on_lost(const std::string& why) override;
  [[nodiscard]] Duration next_look() const override;
  void inspect_queues(Channel& channel);
  void know_queue(Channel& channel, const std::string& queue);
  void settle(std::map<std::uint64_t, Entry>::iterator first, std::map<std::uint64_t, Entry>::iterator last, bool ok);
  static void finish(const Entry& entry, Outcome outcome);
  Way& way_of(const std::string& routing_key);
  void take_detour(Entry&& entry, const char* why);
  void detour_the_late(SteadyTime now);

  const Settings settings_;
  std::atomic<std::uint64_t> losses_{0};
  mutable std::mutex mutex_;
  std::condition_variable room_;
  std::deque<Entry> waiting_;                    // guarded by mutex_
  std::size_t outstanding_ = 0;                  // waiting and unconfirmed; guarded by mutex_
  std::map<std::string, std::uint64_t> depths_;  // guarded by mutex_
  bool depths_wanted_ = false;                   // guarded by mutex_
  std::map<std::uint64_t, Entry> unconfirmed_;   // connection thread only
  std::set<std::uint64_t> may_detour_;           // of these, by tag; connection thread only
  std::map<std::string, Way> ways_;              // by routing key; at most kMaxTickQueues; connection thread only
  std::uint64_t last_tag_ = 0;                   // connection thread only
  bool blocked_ = false;                         // connection thread only
  bool refused_ = false;                         // on this connection; connection thread only
  SteadyTime connected_{};                       // connection thread only
  std::set<std::string> tick_queues_;            // declared on this connection; connection thread only; at most kMaxTickQueues
};

}  // namespace takt::amqp
