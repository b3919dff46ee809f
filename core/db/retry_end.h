#pragma once
#include "core/time/time.h"

namespace takt {

/// While it lives, no statement of this thread is tried again after `at`, whatever number of tries its caller allows: a round of a
/// duty ends, and fails, within that time and one statement's. One at a time in a thread.
class RetryEnd {
 public:
  explicit RetryEnd(SteadyTime at) { end_ = at; }
  ~RetryEnd() { end_ = SteadyTime::max(); }
  RetryEnd(const RetryEnd&) = delete;
  RetryEnd& operator=(const RetryEnd&) = delete;

  [[nodiscard]] static bool passed() { return std::chrono::steady_clock::now() > end_; }

 private:
  static inline thread_local SteadyTime end_ = SteadyTime::max();
};

}  // namespace takt
