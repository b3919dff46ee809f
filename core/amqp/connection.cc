#include "core/amqp/connection.h"

#include <poll.h>

#include <array>

#include "core/observe/log.h"
#include "core/process/random.h"

namespace takt::amqp {

Connection::Connection(BrokerSettings settings) : settings_(std::move(settings)) {}

Connection::~Connection() { stop(); }

void Connection::start() {
  thread_ = std::thread([this] { run(); });
}

void Connection::stop() {
  stopping_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

Connection::State Connection::state() const {
  const std::scoped_lock lock(state_mutex_);
  return state_;
}

void Connection::set_blocked(std::optional<std::string> reason) {
  {
    const std::scoped_lock lock(state_mutex_);
    state_.blocked = reason.has_value();
    state_.fault = reason.value_or("");
  }
  if (reason)
    log_warn("broker blocked publishing", {{"connection", settings_.name}, {"reason", *reason}});
  else
    log_info("broker unblocked publishing", {{"connection", settings_.name}});
}

bool Connection::wait_connected(Duration timeout) const {
  std::unique_lock lock(state_mutex_);
  return state_changed_.wait_for(lock, timeout, [&] { return state_.connected; });
}

void Connection::pause(Duration duration) {
  const auto until = std::chrono::steady_clock::now() + duration;
  while (!stopping_) {
    const auto left = std::chrono::duration_cast<Duration>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    wake_.wait(left);
  }
}

void Connection::run() {
  SeededRandom random(random_seed());
  int failures = 0;
  while (!stopping_) {
    std::string why;
    try {
      Channel channel(settings_);
      on_connected(channel);
      failures = 0;
      {
        const std::scoped_lock lock(state_mutex_);
        if (state_.ever_connected) ++reconnects_;
        state_ = {true, true, false, ""};
      }
      state_changed_.notify_all();
      log_debug("broker connected", {{"connection", settings_.name}});
      serve(channel);
      why = "stopped";
    } catch (const std::exception& error) {
      why = error.what();
    }
    {
      const std::scoped_lock lock(state_mutex_);
      state_.connected = false;
      state_.blocked = false;
      state_.fault = why;
    }
    on_lost(why);
    if (stopping_) return;
    if (failures == 0) log_warn("broker lost", {{"connection", settings_.name}, {"error", why}});
    const auto ceiling = std::min(settings_.backoff_max, settings_.backoff_base * (1 << std::min(failures, 10)));
    ++failures;
    pause(Duration(50) + Duration(static_cast<std::int64_t>(static_cast<double>(ceiling.count()) * random.uniform())));
  }
}

void Connection::serve(Channel& channel) {
  const auto on_any = [&](Event&& event) { on_event(channel, std::move(event)); };
  // Heartbeats are sent and checked inside process(); four looks an interval are enough.
  const auto look = std::clamp(settings_.heartbeat / 4, Duration(100), Duration(5000));
  while (!stopping_) {
    channel.process(on_any);
    on_wake(channel);
    if (channel.has_buffered()) continue;
    std::array<pollfd, 2> watched{{{channel.socket(), POLLIN, 0}, {wake_.descriptor(), POLLIN, 0}}};
    ::poll(watched.data(), watched.size(), static_cast<int>(std::min(look, next_look()).count()));
    if (watched[1].revents != 0) wake_.drain();
  }
  on_wake(channel);  // acknowledgements that were asked for before stop()
}

}  // namespace takt::amqp
