#include "core/amqp/consumer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/amqp/topology.h"
#include "core/observe/log.h"

namespace takt::amqp {

namespace {
/// After a queue could not be declared.
constexpr Duration kTryAgain = std::chrono::seconds(30);
constexpr Duration kTryWakesAgain = std::chrono::seconds(5);
/// After the broker did not answer it, which lost the connection.
constexpr Duration kSpareWakes = std::chrono::seconds(60);

std::string consumer_tag(const std::string& queue) { return "takt:" + queue; }
}  // namespace

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

void Consumer::put_back(const Delivery& delivery) { reject(delivery, !delivery.consumer.starts_with(consumer_tag(wake_queue("")))); }

void Consumer::stop_consuming() {
  consuming_ = false;
  wake();
}

void Consumer::consume_ticks(const std::vector<std::string>& queues) {
  std::set<std::string> wanted(queues.begin(), queues.end());
  {
    const std::scoped_lock lock(mutex_);
    if (wanted == wanted_) return;
    wanted_ = std::move(wanted);
    wanted_changed_ = true;
  }
  wake();
}

/// After a reconnect: what is wanted is consumed by the next on_wake(); the rest, if it is still there, now.
void Consumer::resume_tick_queues(Channel& channel) {
  {
    const std::scoped_lock lock(mutex_);
    missing_ = wanted_;
  }
  next_try_ = {};
  std::erase_if(ticking_, [&](const std::string& queue) { return missing_.contains(queue) || !channel.inspect_queue(tick_queue(queue)); });
  for (const auto& queue : ticking_) channel.consume(tick_queue(queue), consumer_tag(tick_queue(queue)), settings_.prefetch);
}

void Consumer::consume_missing(Channel& channel) {
  if (missing_.empty() || std::chrono::steady_clock::now() < next_try_) return;
  for (auto queue = missing_.begin(); queue != missing_.end();) {
    if (ticking_.size() >= kMaxTickQueues) {
      log_error("queues left out",
                {{"count", missing_.size()}, {"first", *queue}, {"most", kMaxTickQueues}, {"then", "let jobs share queues"}});
      break;
    }
    if (try_declare_tick_queue(channel, *queue)) {
      channel.consume(tick_queue(*queue), consumer_tag(tick_queue(*queue)), settings_.prefetch);
      log_info("queue consumed", {{"queue", *queue}});
      ticking_.insert(*queue);
      wakes_differ_ = true;
      queue = missing_.erase(queue);
    } else {
      ++queue;
    }
  }
  next_try_ = std::chrono::steady_clock::now() + kTryAgain;
}

/// Whatever hinders it costs only the time that a queue of ticks takes for its disk.
void Consumer::consume_wakes(Channel& channel) {
  if (!settings_.wakes || !wakes_differ_ || std::chrono::steady_clock::now() < next_wakes_try_) return;
  std::set<std::string> known(settings_.tick_queues.begin(), settings_.tick_queues.end());
  known.insert(ticking_.begin(), ticking_.end());
  std::erase_if(waking_, [&](const std::string& queue) {
    if (known.contains(queue)) return false;
    channel.cancel(consumer_tag(wake_queue(queue)));
    return true;
  });
  next_wakes_try_ = std::chrono::steady_clock::now() + kSpareWakes;
  for (const auto& queue : known) {
    if (waking_.contains(queue) || !try_declare_wake_queue(channel, queue)) continue;
    channel.consume(wake_queue(queue), consumer_tag(wake_queue(queue)), settings_.prefetch);
    waking_.insert(queue);
  }
  wakes_differ_ = known != waking_;
  next_wakes_try_ = wakes_differ_ ? std::chrono::steady_clock::now() + kTryWakesAgain : SteadyTime();
}

/// Whether the consumer that the broker cancelled was one of a queue that nobody needs any more.
bool Consumer::forget_tick_queue(const std::string& consumer) {
  const auto gone =
      std::find_if(ticking_.begin(), ticking_.end(), [&](const auto& queue) { return consumer_tag(tick_queue(queue)) == consumer; });
  if (gone == ticking_.end()) return false;
  const std::scoped_lock lock(mutex_);
  if (wanted_.contains(*gone)) return false;
  log_info("queue gone", {{"queue", *gone}});
  ticking_.erase(gone);
  wakes_differ_ = true;
  return true;
}

/// The same for a queue of wake ticks, which is declared again.
bool Consumer::forget_wake_queue(const std::string& consumer) {
  if (std::erase_if(waking_, [&](const auto& queue) { return consumer_tag(wake_queue(queue)) == consumer; }) == 0) return false;
  return wakes_differ_ = true;
}

void Consumer::on_connected(Channel& channel) {
  ++epoch_;
  open_.clear();
  declare_topology(channel, settings_.tick_queues);
  cancelled_ = !consuming_;
  if (cancelled_) return;
  for (const auto& queue : settings_.queues) channel.consume(queue, consumer_tag(queue), settings_.prefetch);
  resume_tick_queues(channel);
  waking_.clear();
  wakes_differ_ = true;
}

void Consumer::on_event(Channel& /*channel*/, Event&& event) {
  if (auto* delivery = std::get_if<Delivery>(&event)) {
    delivery->epoch = epoch_;
    open_.insert(delivery->tag);
    on_delivery_(std::move(*delivery));
  } else if (const auto* cancelled = std::get_if<ConsumerCancelled>(&event)) {
    if (forget_wake_queue(cancelled->consumer) || forget_tick_queue(cancelled->consumer)) return;
    throw BrokerUnavailable("the broker cancelled consumer " + cancelled->consumer + ": its queue is gone");
  }
}

void Consumer::on_wake(Channel& channel) {
  if (!consuming_ && !cancelled_) {
    cancelled_ = true;
    for (const auto& queue : settings_.queues) channel.cancel(consumer_tag(queue));
    for (const auto& queue : ticking_) channel.cancel(consumer_tag(tick_queue(queue)));
    for (const auto& queue : waking_) channel.cancel(consumer_tag(wake_queue(queue)));
  }
  std::vector<Command> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(commands_);
    if (std::exchange(wanted_changed_, false)) {
      missing_.clear();
      std::set_difference(wanted_.begin(), wanted_.end(), ticking_.begin(), ticking_.end(), std::inserter(missing_, missing_.end()));
      next_try_ = {};
    }
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
  if (cancelled_) return;
  consume_missing(channel);
  consume_wakes(channel);
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
