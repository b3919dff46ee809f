#include "core/amqp/consumer.h"

#include "core/amqp/topology.h"
#include "core/log.h"

namespace takt::amqp {

Consumer::Consumer(BrokerSettings broker, Settings settings, std::function<void(Delivery&&)> on_delivery)
    : Connection(std::move(broker)), settings_(std::move(settings)), on_delivery_(std::move(on_delivery)) {}

Consumer::~Consumer() { stop(); }

void Consumer::command(Verb verb, const Delivery& delivery) {
  {
    const std::scoped_lock lock(mutex_);
    commands_.push_back({verb, delivery.epoch, delivery.tag});
  }
  wake();
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
  declare_topology(channel, settings_.tick_queues);
  cancelled_ = !consuming_;
  if (cancelled_) return;
  for (const auto& queue : settings_.queues) channel.consume(queue, "takt:" + queue, settings_.prefetch);
}

void Consumer::on_event(Channel& /*channel*/, Event&& event) {
  if (auto* delivery = std::get_if<Delivery>(&event)) {
    delivery->epoch = epoch_;
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
  for (const auto& [verb, epoch, tag] : commands) {
    if (epoch != epoch_) continue;  // its connection is gone and the broker has requeued it
    switch (verb) {
      case Verb::ack: channel.ack(tag, false); break;
      case Verb::ack_up_to: channel.ack(tag, true); break;
      case Verb::reject: channel.reject(tag, false); break;
      case Verb::requeue: channel.reject(tag, true); break;
    }
  }
}

void Consumer::on_lost(const std::string& /*why*/) {
  const std::scoped_lock lock(mutex_);
  commands_.clear();
}

}  // namespace takt::amqp
