#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/amqp/channel.h"
#include "core/process/wake_up.h"

namespace takt::amqp {

/// Keeps one Channel alive: owns the thread that alone touches it, reconnects with doubling pauses and full jitter.
/// The hooks below run on that thread. Stop order: the derived class calls stop() in its destructor.
class Connection {
 public:
  struct State {
    bool connected = false;
    bool ever_connected = false;
    bool blocked = false;
    std::string fault;  ///< why it is not connected, or why it is blocked
  };

  virtual ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Starts the thread. Call once.
  void start();
  /// Ends the connection and joins the thread. Idempotent. Bounded by the settings' timeouts.
  void stop();
  [[nodiscard]] State state() const;
  [[nodiscard]] std::uint64_t reconnects() const { return reconnects_.load(); }
  /// Waits until connected; false after `timeout`.
  bool wait_connected(Duration timeout) const;

 protected:
  explicit Connection(BrokerSettings settings);

  /// After every (re)connect: declare, consume.
  virtual void on_connected(Channel& channel) = 0;
  virtual void on_event(Channel& channel, Event&& event) = 0;
  /// After wake(): do what other threads asked for.
  virtual void on_wake(Channel& channel) = 0;
  /// The connection is gone, with everything unacknowledged or unconfirmed on it.
  virtual void on_lost(const std::string& why) = 0;

  /// on_wake() is called again after this long at most, without a wake().
  [[nodiscard]] virtual Duration next_look() const { return Duration::max(); }

  /// Makes the thread call on_wake() soon. Any thread.
  void wake() { wake_.wake(); }
  void set_blocked(std::optional<std::string> reason);
  [[nodiscard]] bool stopping() const { return stopping_.load(); }

 private:
  void run();
  void serve(Channel& channel);
  void pause(Duration duration);

  const BrokerSettings settings_;
  WakeUp wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> reconnects_{0};
  mutable std::mutex state_mutex_;
  mutable std::condition_variable state_changed_;
  State state_;  // guarded by state_mutex_
  std::thread thread_;
};

}  // namespace takt::amqp
