#pragma once
#include <atomic>
#include <cstdint>

#include "core/time/time.h"

namespace takt {

/// PostgreSQL's time as it was last heard, carried on by this process's monotonic clock: what ticks and requests are
/// signed and verified with, so that a process's own wall clock may be wrong by any amount. Until something was heard it
/// is the process's own. Thread-safe.
class DatabaseClock final : public Clock {
 public:
  explicit DatabaseClock(const Clock& clock) : clock_(clock) {}

  /// `unix_us`: clock_timestamp() of a statement that was sent at `asked` and is answered now. An answer that took longer than
  /// a second says too little of now (this process may have been frozen), and is taken only if nothing was heard before.
  void hear(std::int64_t unix_us, SteadyTime asked) {
    if (heard() && clock_.steady() - asked > std::chrono::seconds(1)) return;
    ahead_us_ = unix_us - steady_us();
  }
  [[nodiscard]] bool heard() const { return ahead_us_.load() != 0; }

  [[nodiscard]] Timestamp now() const override { return heard() ? from_unix_us(steady_us() + ahead_us_.load()) : clock_.now(); }
  [[nodiscard]] SteadyTime steady() const override { return clock_.steady(); }

 private:
  [[nodiscard]] std::int64_t steady_us() const {
    return std::chrono::duration_cast<std::chrono::microseconds>(clock_.steady().time_since_epoch()).count();
  }

  const Clock& clock_;
  std::atomic<std::int64_t> ahead_us_{0};  // PostgreSQL's Unix time less the steady time; 0: nothing heard
};

}  // namespace takt
