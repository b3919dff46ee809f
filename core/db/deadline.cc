#include "core/db/deadline.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

namespace takt {

/// The thread that looks at all deadlines of the process. It is there as long as a connection is.
class Watchdog {
 public:
  /// The process's one, or a new one.
  static std::shared_ptr<Watchdog> of_process() {
    static std::mutex mutex;
    static std::weak_ptr<Watchdog> there;
    const std::scoped_lock lock(mutex);
    auto found = there.lock();
    if (!found) there = found = std::make_shared<Watchdog>();
    return found;
  }

  Watchdog() {
    // Signals are for the threads that wait for them.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &before);
    try {
      thread_ = std::thread([this] { run(); });
    } catch (...) {
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Watchdog() {
    {
      const std::scoped_lock lock(mutex_);
      over_ = true;
    }
    ended_.notify_one();
    thread_.join();
  }

  void add(AnswerDeadline* deadline) {
    const std::scoped_lock lock(mutex_);
    watched_.insert(deadline);
  }
  void remove(AnswerDeadline* deadline) {
    const std::scoped_lock lock(mutex_);
    watched_.erase(deadline);
  }

 private:
  static constexpr Duration kBetweenLooks = std::chrono::seconds(1);

  void run() {
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kBetweenLooks, [this] { return over_; })) {
      for (auto* deadline : watched_) deadline->look(std::chrono::steady_clock::now());
    }
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false;                  // guarded by mutex_
  std::set<AnswerDeadline*> watched_;  // guarded by mutex_, as is what look() uses of each
  std::thread thread_;
};

namespace {

std::atomic<std::int64_t> most_waited{0};  // milliseconds; 0: as long as each says

/// Bytes that the peer has acknowledged, and that came from it. On a Unix socket those that lie there unread: there nothing is
/// long under way, but this process may have been stopped itself.
std::uint64_t bytes_moved(int socket) {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) == 0) return info.tcpi_bytes_acked + info.tcpi_bytes_received;
  int unread = 0;
  return ::ioctl(socket, FIONREAD, &unread) == 0 ? static_cast<std::uint64_t>(unread) : 0;
}

}  // namespace

AnswerDeadline::AnswerDeadline(int socket, Duration grace) : grace_(grace), socket_(::fcntl(socket, F_DUPFD_CLOEXEC, 0)) {
  if (socket_ < 0) throw std::system_error(errno, std::generic_category());
  try {
    watchdog_ = Watchdog::of_process();
    watchdog_->add(this);
  } catch (...) {
    ::close(socket_);
    throw;
  }
}

void AnswerDeadline::close() {
  if (!watchdog_) return;
  watchdog_->remove(this);
  watchdog_.reset();
  ::close(socket_);
}

Duration AnswerDeadline::begin(Duration limit) {
  constexpr std::int64_t kMost = 0xffffffff;
  const auto ms = static_cast<std::uint64_t>(std::clamp<std::int64_t>(limit.count(), 0, kMost));
  trip_ = ms == 0 ? 0 : static_cast<std::uint64_t>(++trips_) << 32 | ms;
  return std::exchange(limit_, limit);
}

void limit_answer_waits(Duration limit) { most_waited = limit.count(); }
bool answer_waits_are_limited() { return most_waited != 0; }

void AnswerDeadline::look(SteadyTime now) {
  auto trip = trip_.load();
  if (trip == 0) return;
  // A large request or answer on a slow way is no silence.
  const auto moved = bytes_moved(socket_);
  if (trip != seen_trip_) seen_since_ = now;
  if (trip != seen_trip_ || moved != seen_moved_) still_since_ = now;
  seen_trip_ = trip;
  seen_moved_ = moved;
  const Duration most(most_waited.load());
  const bool ending = most > Duration(0);
  const Duration own(static_cast<std::int64_t>(trip & 0xffffffff));
  const Duration limit = ending ? std::min(own, most) : own + grace_;
  if (now < seen_since_ + limit || now < still_since_ + (ending ? most : grace_)) return;
  // Said before it is done, so that nobody takes the connection for a good one in between.
  given_up_after_ = std::max<std::int64_t>(1, std::chrono::floor<std::chrono::milliseconds>(now - seen_since_).count());
  if (!trip_.compare_exchange_strong(trip, 0)) {
    given_up_after_ = 0;  // the answer has come just now
    return;
  }
  ::shutdown(socket_, SHUT_RDWR);
}

}  // namespace takt
