#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "core/time/time.h"

// An end to the wait for a server that is there and says nothing: its processes or its machine are stopped, or its disk hangs,
// while a kernel goes on acknowledging. No timeout of the server's can fire then, and none of TCP's does.
namespace takt {

class Watchdog;

/// The deadline of one connected socket, on which one thread waits for one answer at a time. The process's watchdog looks once
/// a second: past the deadline, and when nothing has moved on the socket for the grace either, it shuts the socket down, and
/// whoever waits finds it broken. At most two looks late: a wait begins when it is first looked at, so that to set a deadline is one store.
class AnswerDeadline {
 public:
  /// Keeps a copy of the descriptor, since libpq may close its own, whose number is then another's.
  /// Throws std::system_error where the process has no descriptor or thread left.
  AnswerDeadline(int socket, Duration grace);
  ~AnswerDeadline() { close(); }
  AnswerDeadline(const AnswerDeadline&) = delete;
  AnswerDeadline& operator=(const AnswerDeadline&) = delete;

  /// Lets go of the socket: before its owner closes it, since it stays connected as long as there is a copy.
  void close();
  /// How long the server had said nothing when the socket was shut down; zero if it was not. Any thread.
  [[nodiscard]] Duration given_up_after() const { return Duration(given_up_after_.load()); }

 private:
  friend class RoundTrip;
  friend class Watchdog;

  /// From now on there is so much time, and the grace; zero: any. Returns what there was before. The owner's thread.
  Duration begin(Duration limit);
  /// The watchdog's thread.
  void look(SteadyTime now);

  const Duration grace_;
  int socket_;
  std::shared_ptr<Watchdog> watchdog_;
  Duration limit_{0};                   // the owner's
  std::uint32_t trips_ = 0;             // the owner's
  std::atomic<std::uint64_t> trip_{0};  // which one, and its limit in milliseconds below; 0: none
  std::atomic<std::int64_t> given_up_after_{0};
  // The watchdog's: which one it saw, since when, how much had moved by then, and since when nothing has.
  std::uint64_t seen_trip_ = 0;
  std::uint64_t seen_moved_ = 0;
  SteadyTime seen_since_, still_since_;
};

/// One wait for an answer: from here to the end of the block. Within another it is the inner one that counts; the outer one's
/// time begins anew after it.
class RoundTrip {
 public:
  /// `limit` zero: as long as it takes.
  RoundTrip(AnswerDeadline& deadline, Duration limit) : deadline_(deadline), before_(deadline.begin(limit)) {}
  ~RoundTrip() { deadline_.begin(before_); }
  RoundTrip(const RoundTrip&) = delete;
  RoundTrip& operator=(const RoundTrip&) = delete;

 private:
  AnswerDeadline& deadline_;
  Duration before_;
};

/// From now on no wait of this process for an answer lasts much longer than `limit`, which is not zero, nor has it the grace: the
/// process is ending. Any thread.
void limit_answer_waits(Duration limit);
[[nodiscard]] bool answer_waits_are_limited();

}  // namespace takt
