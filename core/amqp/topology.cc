#include "core/amqp/topology.h"

#include <map>
#include <mutex>

#include "core/observe/log.h"

namespace takt::amqp {

namespace {

constexpr std::int64_t kTickDeliveryLimit = 20;
constexpr std::int64_t kTickQueueLength = 1'000'000;
// RabbitMQ 4 drops a message at a default limit of 20 deliveries; the archive's messages must not be dropped.
constexpr std::int64_t kDeadDeliveryLimit = 1'000'000;
constexpr std::int64_t kQuarantineLength = 10'000;
constexpr std::int64_t kQuarantineBytes = 64LL * 1024 * 1024;
constexpr std::int64_t kWakeTtlMs = 1000;
constexpr std::int64_t kWakeQueueLength = 10'000;
constexpr std::int64_t kWakeQueueBytes = 16LL * 1024 * 1024;
constexpr std::int64_t kWakeQueueExpiryMs = 10'000;

}  // namespace

std::string tick_queue(const std::string& queue) { return kTicksExchange + "." + queue; }
std::string wake_queue(const std::string& queue) { return kWakesExchange + "." + queue; }

namespace {
/// What is left out is met by each connection of the process, and again with every reconnect.
constexpr Duration kNextLine = std::chrono::seconds(20);

/// Whether this queue had no line for a while. Thread-safe; remembers at most as many queues as a process knows: of ticks, and of wake
/// ticks.
bool line_due(const std::string& queue) {
  static std::mutex mutex;
  static std::map<std::string, SteadyTime> last_lines;
  const std::scoped_lock lock(mutex);
  const auto now = std::chrono::steady_clock::now();
  const auto last = last_lines.find(queue);
  if (last != last_lines.end() && now - last->second < kNextLine) return false;
  if (last == last_lines.end() && last_lines.size() >= 2 * kMaxTickQueues) last_lines.clear();
  last_lines[queue] = now;
  return true;
}

void declare_tick_queue(Channel& channel, const std::string& queue) {
  channel.declare_queue(tick_queue(queue), {{"x-queue-type", "quorum"},
                                            {"x-delivery-limit", kTickDeliveryLimit},
                                            {"x-max-length", kTickQueueLength},
                                            {"x-overflow", "reject-publish"},
                                            {"x-dead-letter-exchange", kDeadExchange},
                                            {"x-dead-letter-strategy", "at-least-once"}});
  channel.bind_queue(tick_queue(queue), kTicksExchange, queue);
}

void declare_wake_queue(Channel& channel, const std::string& queue) {
  channel.declare_queue(wake_queue(queue), {{"x-queue-type", "classic"},
                                            {"x-message-ttl", kWakeTtlMs},
                                            {"x-max-length", kWakeQueueLength},
                                            {"x-max-length-bytes", kWakeQueueBytes},
                                            {"x-overflow", "reject-publish"},
                                            {"x-expires", kWakeQueueExpiryMs},
                                            {"x-dead-letter-exchange", kTicksExchange}});
  channel.bind_queue(wake_queue(queue), kWakesExchange, queue);
}

/// Whether `declare` succeeded; else `tell` was given the reason, unless it was told lately.
template <typename Declare, typename Tell>
bool declared(const std::string& queue, const Declare& declare, const Tell& tell) {
  try {
    declare();
    return true;
  } catch (const TopologyMismatch& error) {
    if (line_due(queue)) tell(error.what());
    return false;
  }
}
}  // namespace

void declare_topology(Channel& channel, const std::vector<std::string>& queues) {
  channel.declare_exchange(kDeadExchange, "fanout");
  channel.declare_queue(kDeadQueue, {{"x-queue-type", "quorum"}, {"x-delivery-limit", kDeadDeliveryLimit}});
  channel.bind_queue(kDeadQueue, kDeadExchange, "");

  channel.declare_queue(kQuarantineQueue, {{"x-queue-type", "quorum"},
                                           {"x-delivery-limit", kDeadDeliveryLimit},
                                           {"x-max-length", kQuarantineLength},
                                           {"x-max-length-bytes", kQuarantineBytes},
                                           {"x-overflow", "drop-head"}});

  channel.declare_exchange(kTicksExchange, "direct");
  channel.declare_exchange(kWakesExchange, "direct");
  for (const auto& queue : queues) declare_tick_queue(channel, queue);
}

bool try_declare_tick_queue(Channel& channel, const std::string& queue) {
  return declared(
      queue, [&] { declare_tick_queue(channel, queue); },
      [&](const char* error) {
        log_error("queue left out", {{"queue", queue}, {"error", error}});
      });
}

bool try_declare_wake_queue(Channel& channel, const std::string& queue) {
  const auto name = wake_queue(queue);
  return declared(
      name, [&] { declare_wake_queue(channel, queue); },
      [&](const char* error) {
        log_warn("wake queue left out", {{"queue", name}, {"error", error}, {"then", "wake ticks go through " + tick_queue(queue)}});
      });
}

}  // namespace takt::amqp
