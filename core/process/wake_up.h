#pragma once
#include "core/time/time.h"

namespace takt {

/// What ends a thread's wait from another: an event descriptor, so that the wait can be for sockets too. Any thread may call
/// wake(); one thread waits.
class WakeUp {
 public:
  /// Throws std::runtime_error where the process has no descriptor left.
  WakeUp();
  ~WakeUp();
  WakeUp(const WakeUp&) = delete;
  WakeUp& operator=(const WakeUp&) = delete;

  void wake();
  /// Up to `timeout` for a wake(), the ones since the last wait included; true if there was one.
  bool wait(Duration timeout);
  /// Forgets the wakes so far; true if there were any.
  bool drain() { return wait(Duration(0)); }
  /// Readable after a wake(), for poll().
  [[nodiscard]] int descriptor() const { return fd_; }

 private:
  int fd_;
};

}  // namespace takt
