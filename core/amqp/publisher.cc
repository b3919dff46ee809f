#include "core/amqp/publisher.h"

#include <utility>

#include "core/amqp/topology.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"

namespace takt::amqp {

namespace {
/// Messages sent before the broker's confirms are looked at again.
constexpr std::size_t kBurst = 256;
/// A message with a detour: without an answer it takes it after this time, when a node hangs that held its queue; and so long
/// do those that follow, by what kept it.
constexpr Duration kDetourAfter = std::chrono::milliseconds(200);
constexpr Duration kReturnedFor = std::chrono::seconds(1);
constexpr Duration kKeptFor = std::chrono::seconds(5);

void send_onto_detour(Message& message) {
  message.exchange = std::exchange(message.detour, "");
  message.persistent = true;
}
}  // namespace

/// What one publish_all() waits for.
struct Publisher::Batch {
  std::mutex mutex;
  std::condition_variable done;
  std::vector<Outcome> outcomes;  // guarded by mutex
  std::size_t open = 0;           // guarded by mutex
};

std::string_view to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::confirmed: return "confirmed";
    case Outcome::refused: return "refused";
    case Outcome::unroutable: return "unroutable";
    case Outcome::lost: return "lost";
    case Outcome::timed_out: return "timed_out";
  }
  return "?";
}

Publisher::Publisher(BrokerSettings broker, Settings settings) : Connection(std::move(broker)), settings_(std::move(settings)) {}

Publisher::~Publisher() { stop(); }

void Publisher::finish(const Entry& entry, Outcome outcome) {
  if (!entry.batch) return;
  const std::scoped_lock lock(entry.batch->mutex);
  entry.batch->outcomes[entry.index] = outcome;
  if (--entry.batch->open == 0) entry.batch->done.notify_all();
}

std::vector<Outcome> Publisher::publish_all(std::vector<Message> messages, Duration timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  auto batch = std::make_shared<Batch>();
  batch->outcomes.assign(messages.size(), Outcome::timed_out);
  batch->open = messages.size();
  std::size_t given = 0;
  {
    std::unique_lock lock(mutex_);
    for (; given < messages.size(); ++given) {
      if (outstanding_ >= settings_.window) {
        wake();
        if (!room_.wait_until(lock, deadline, [&] { return outstanding_ < settings_.window || stopping(); })) break;
      }
      if (stopping()) break;
      waiting_.push_back({std::move(messages[given]), batch, given});
      ++outstanding_;
    }
  }
  wake();
  std::unique_lock lock(batch->mutex);
  batch->open -= messages.size() - given;
  batch->done.wait_until(lock, deadline, [&] { return batch->open == 0; });
  return batch->outcomes;
}

Outcome Publisher::publish(Message message, Duration timeout) {
  std::vector<Message> one;
  one.push_back(std::move(message));
  return publish_all(std::move(one), timeout).front();
}

bool Publisher::publish_unwatched(Message message) {
  {
    const std::scoped_lock lock(mutex_);
    if (outstanding_ >= settings_.window || stopping()) return false;
    waiting_.push_back({std::move(message), nullptr, 0});
    ++outstanding_;
  }
  wake();
  return true;
}

std::map<std::string, std::uint64_t> Publisher::queue_depths() {
  {
    const std::scoped_lock lock(mutex_);
    depths_wanted_ = true;
  }
  wake();
  return last_queue_depths();
}

std::map<std::string, std::uint64_t> Publisher::last_queue_depths() const {
  const std::scoped_lock lock(mutex_);
  return depths_;
}

void Publisher::inspect_queues(Channel& channel) {
  std::map<std::string, std::uint64_t> depths;
  for (const auto& name : {kDeadQueue, kQuarantineQueue}) {
    if (const auto info = channel.inspect_queue(name))
      depths[name] = info->messages;
    else
      declare_topology(channel, {});
  }
  std::erase_if(tick_queues_, [&](const std::string& queue) {
    const auto info = channel.inspect_queue(tick_queue(queue));
    if (info) depths[tick_queue(queue)] = info->messages;
    return !info;  // deleted; declared again before the next message for it
  });
  const std::scoped_lock lock(mutex_);
  depths_ = std::move(depths);
}

/// A job may have been applied a moment ago, with a queue of its own.
void Publisher::know_queue(Channel& channel, const std::string& queue) {
  if (tick_queues_.contains(queue) || tick_queues_.size() >= kMaxTickQueues) return;
  tick_queues_.insert(queue);
  try_declare_tick_queue(channel, queue);
}

void Publisher::on_connected(Channel& channel) {
  declare_topology(channel, {});
  tick_queues_.clear();
  for (const auto& queue : settings_.queues) know_queue(channel, queue);
  channel.select_confirms();
  last_tag_ = 0;
  blocked_ = refused_ = false;
  connected_ = std::chrono::steady_clock::now();
}

void Publisher::settle(std::map<std::uint64_t, Entry>::iterator first, std::map<std::uint64_t, Entry>::iterator last, bool ok) {
  std::size_t count = 0;
  for (auto it = first; it != last; ++it) {
    auto& entry = it->second;
    if (may_detour_.erase(it->first) > 0) {
      if (entry.returned || !ok) {
        take_detour(std::move(entry), entry.returned ? "returned" : "refused");
        continue;
      }
      way_of(entry.message.routing_key).straight = true;
    }
    ++count;
    finish(entry, entry.returned ? Outcome::unroutable : ok ? Outcome::confirmed : Outcome::refused);
    if (ok) continue;
    if (!entry.batch) ++losses_;
    if (!std::exchange(refused_, true)) {
      log_warn("message refused", {{"exchange", entry.message.exchange}, {"routing_key", entry.message.routing_key}});
    }
  }
  unconfirmed_.erase(first, last);
  {
    const std::scoped_lock lock(mutex_);
    outstanding_ -= count;
  }
  room_.notify_all();
}

Publisher::Way& Publisher::way_of(const std::string& routing_key) {
  if (ways_.size() >= kMaxTickQueues && !ways_.contains(routing_key)) ways_.clear();
  return ways_[routing_key];
}

/// It keeps its place in the window, and goes first.
void Publisher::take_detour(Entry&& entry, const char* why) {
  auto& message = entry.message;
  auto& way = way_of(message.routing_key);
  way.not_before = std::chrono::steady_clock::now() + (entry.returned ? kReturnedFor : kKeptFor);
  if (std::exchange(way.straight, false)) {
    ++losses_;  // what the queue took before may be gone with it
    log_info("messages detoured", {{"from", message.exchange}, {"to", message.detour}, {"routing_key", message.routing_key}, {"why", why}});
  }
  send_onto_detour(message);
  entry.returned = false;
  {
    const std::scoped_lock lock(mutex_);
    waiting_.push_front(std::move(entry));
  }
  wake();
}

void Publisher::detour_the_late(SteadyTime now) {
  while (!may_detour_.empty()) {
    const auto oldest = unconfirmed_.find(*may_detour_.begin());
    if (now - oldest->second.sent < kDetourAfter) return;
    may_detour_.erase(may_detour_.begin());
    take_detour(std::move(oldest->second), "no answer");
    unconfirmed_.erase(oldest);
  }
}

void Publisher::on_event(Channel& /*channel*/, Event&& event) {
  if (const auto* confirmed = std::get_if<Confirmed>(&event)) {
    const auto end = unconfirmed_.upper_bound(confirmed->tag);
    const auto begin = confirmed->multiple ? unconfirmed_.begin() : unconfirmed_.find(confirmed->tag);
    if (begin != unconfirmed_.end()) settle(begin, end, confirmed->ok);
  } else if (const auto* returned = std::get_if<Returned>(&event)) {
    // The broker returns a message before it confirms it, and names it by its properties only.
    for (auto& [tag, entry] : unconfirmed_) {
      if (entry.returned || entry.message.exchange != returned->exchange || entry.message.routing_key != returned->routing_key ||
          entry.message.message_id.substr(0, 255) != returned->message_id) {
        continue;
      }
      entry.returned = true;
      if (!entry.message.detour.empty()) break;
      log_warn("message unroutable", {{"exchange", entry.message.exchange},
                                      {"routing_key", returned->routing_key},
                                      {"id", returned->message_id},
                                      {"reason", returned->reason}});
      break;
    }
  } else if (const auto* blocked = std::get_if<Blocked>(&event)) {
    blocked_ = blocked->reason.has_value();
    const auto now = std::chrono::steady_clock::now();
    for (auto& [tag, entry] : unconfirmed_) entry.sent = now;  // the time in which it blocked is not counted
    set_blocked(blocked->reason);
  }
}

void Publisher::on_wake(Channel& channel) {
  if (blocked_) return;  // the broker reads nothing from this connection then
  const bool inspect = [this] {
    const std::scoped_lock lock(mutex_);
    return std::exchange(depths_wanted_, false);
  }();
  const auto now = std::chrono::steady_clock::now();
  detour_the_late(now);
  if (inspect) inspect_queues(channel);
  if (!unconfirmed_.empty() && now - unconfirmed_.begin()->second.sent > settings_.confirm_timeout) {
    throw BrokerUnavailable("broker: no confirm within " + format_duration(settings_.confirm_timeout));
  }
  if (refused_ && now - connected_ > settings_.confirm_timeout) throw BrokerUnavailable("broker: a message was refused");
  const auto first = last_tag_ + 1;
  {
    const std::scoped_lock lock(mutex_);
    for (std::size_t n = 0; n < kBurst && !waiting_.empty(); ++n) {
      unconfirmed_.emplace_hint(unconfirmed_.end(), ++last_tag_, std::move(waiting_.front()));
      waiting_.pop_front();
    }
    if (!waiting_.empty()) wake();
  }
  for (auto it = unconfirmed_.lower_bound(first); it != unconfirmed_.end(); ++it) {
    auto& message = it->second.message;
    if (!message.detour.empty()) {
      const auto way = ways_.find(message.routing_key);
      if (way == ways_.end() || way->second.not_before <= now) {
        may_detour_.insert(it->first);
      } else {
        send_onto_detour(message);
      }
    }
    if (message.exchange == kTicksExchange || message.exchange == kWakesExchange) know_queue(channel, message.routing_key);
  }
  const auto sent = std::chrono::steady_clock::now();
  std::optional<Channel::Cork> cork;
  if (last_tag_ > first) cork.emplace(channel);
  for (auto it = unconfirmed_.lower_bound(first); it != unconfirmed_.end(); ++it) {
    it->second.sent = sent;
    channel.publish(it->second.message);
    crash_point("publisher.before_confirm");
  }
}

Duration Publisher::next_look() const {
  auto due = SteadyTime::max();
  if (!blocked_ && !unconfirmed_.empty()) due = unconfirmed_.begin()->second.sent + settings_.confirm_timeout;
  if (!blocked_ && !may_detour_.empty()) due = std::min(due, unconfirmed_.at(*may_detour_.begin()).sent + kDetourAfter);
  if (refused_) due = std::min(due, connected_ + settings_.confirm_timeout);
  if (due == SteadyTime::max()) return Duration::max();
  return std::max(Duration(1), std::chrono::ceil<Duration>(due - std::chrono::steady_clock::now()));
}

void Publisher::on_lost(const std::string& /*why*/) {
  std::deque<Entry> waiting;
  {
    const std::scoped_lock lock(mutex_);
    waiting.swap(waiting_);
    outstanding_ = 0;
  }
  for (const auto& [tag, entry] : unconfirmed_) finish(entry, Outcome::lost);
  bool perhaps_lost = !unconfirmed_.empty() || !waiting.empty();
  for (auto& [key, way] : ways_) perhaps_lost |= std::exchange(way.straight, false);  // those that were confirmed, too, are on no disk
  if (perhaps_lost) ++losses_;
  unconfirmed_.clear();
  may_detour_.clear();
  for (const auto& entry : waiting) finish(entry, Outcome::lost);
  room_.notify_all();
}

}  // namespace takt::amqp
