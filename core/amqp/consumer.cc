#include "core/amqp/consumer.h"

#include <algorithm>

#include "core/amqp/topology.h"
#include "core/log.h"

namespace takt::amqp {

Consumer::Consumer(BrokerSettings broker, Settings settings, std::function<void(Delivery&&)> on_delivery)
    : Connection(std::move(broker)), settings_(std::move(settings)), on_delivery_(std::move(on_delivery)) {}

Consumer::~Consumer() { stop(); }

void Consumer::command(Verb verb, const Delivery& delivery) {
  bool first = false;
  {
    const std::scoped_lock lock(mutex_);
    first = commands_.empty();
    commands_.push_back({verb, delivery.epoch, delivery.tag});
  }
  if (first) wake();
}

void Consumer::ack(const Delivery& delivery) { command(Verb::ack, delivery); }
void Consumer::ack_up_to(const Delivery& delivery) { command(Verb::ack_up_to, delivery); }
void Consumer::reject(const Delivery& delivery, bool requeue) { command(requeue ? Verb::requeue : Verb::reject, delivery); }

void Consumer::stop_consuming() {
  consuming_ = false;
  wake();
}

void Consumer::on_connected(Channel& channel) {
  ++epoch_;
  open_.clear();
  declare_topology(channel, settings_.tick_queues);
  cancelled_ = !consuming_;
  if (cancelled_) return;
  for (const auto& queue : settings_.queues) channel.consume(queue, "takt:" + queue, settings_.prefetch);
}

void Consumer::on_event(Channel& /*channel*/, Event&& event) {
  if (auto* delivery = std::get_if<Delivery>(&event)) {
    delivery->epoch = epoch_;
    open_.insert(delivery->tag);
    on_delivery_(std::move(*delivery));
  } else if (const auto* cancelled = std::get_if<ConsumerCancelled>(&event)) {
    throw BrokerUnavailable("the broker cancelled consumer " + cancelled->consumer + ": its queue is gone");
  }
}

void Consumer::on_wake(Channel& channel) {
  if (!consuming_ && !cancelled_) {
    cancelled_ = true;
    for (const auto& queue : settings_.queues) channel.cancel("takt:" + queue);
  }
  std::vector<Command> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(commands_);
  }
  std::vector<std::uint64_t> acks;
  for (const auto& [verb, epoch, tag] : commands) {
    if (epoch != epoch_) continue;  // its connection is gone and the broker has requeued it
    switch (verb) {
      case Verb::ack: acks.push_back(tag); break;
      case Verb::ack_up_to: acks.insert(acks.end(), open_.begin(), open_.upper_bound(tag)); break;
      case Verb::reject:
      case Verb::requeue:
        open_.erase(tag);
        channel.reject(tag, verb == Verb::requeue);
        break;
    }
  }
  send_acks(channel, acks);
}

/// What is answered without a gap from the oldest open delivery on goes as one acknowledgement, which costs the broker a
/// quarter of one each.
void Consumer::send_acks(Channel& channel, std::vector<std::uint64_t>& tags) {
  std::sort(tags.begin(), tags.end());
  tags.erase(std::unique(tags.begin(), tags.end()), tags.end());
  auto next = tags.begin();
  std::uint64_t up_to = 0;
  while (next != tags.end() && !open_.empty() && *open_.begin() == *next) {
    up_to = *next++;
    open_.erase(open_.begin());
  }
  if (up_to != 0) channel.ack(up_to, true);
  for (; next != tags.end(); ++next) {
    if (open_.erase(*next) > 0) channel.ack(*next, false);
  }
}

void Consumer::on_lost(const std::string& /*why*/) {
  const std::scoped_lock lock(mutex_);
  commands_.clear();
}

}  // namespace takt::amqp
