#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "core/observe/metrics.h"
#include "core/process/wake_up.h"
#include "dispatcher/leadership.h"
#include "dispatcher/outbox.h"

namespace takt {

/// That the dispatcher stops. Thread-safe.
class StopSignal {
 public:
  void give() {
    {
      const std::scoped_lock lock(mutex_);
      given_ = true;
    }
    changed_.notify_all();
  }
  [[nodiscard]] bool given() const { return given_; }
  /// Until it is given, or `time` is over.
  void wait(Duration time) const {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [&] { return given_.load(); });
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::atomic<bool> given_{false};  // set under mutex_, so that no wait() misses it
};

/// What one duty tells the others. Thread-safe.
struct Noticed {
  std::atomic<std::int64_t> slots_term{0};  ///< the term in which what an earlier leader stored ahead was looked at
  std::atomic<bool> suspects{true};         ///< there may be some
  std::atomic<bool> quiet{false};           ///< nothing was due or under way in the last due-scans
  WakeUp scan_wanted;                       ///< something may be due now
};

/// What the duties of one dispatcher share. All of it may be used from any thread.
struct DutyContext {
  Database& database;
  Leadership& leadership;
  Outbox& outbox;
  Metrics& metrics;
  const Clock& clock;
  Noticed& noticed;
  const StopSignal& stop;
};

/// One of the dispatcher's duties. It has a thread of its own, and what its members hold is that thread's alone unless they say otherwise.
class Duty {
 public:
  /// How long until the next round; nullopt: this dispatcher does not lead, and the duty did nothing.
  using Round = std::optional<Duration>;

  explicit Duty(const DutyContext& context) : on_(context) {}
  virtual ~Duty() = default;
  Duty(const Duty&) = delete;
  Duty& operator=(const Duty&) = delete;

  /// One bounded piece of work, if this dispatcher leads. Throws as Database does; what it throws is told, and the next round tries again.
  virtual Round run_once() = 0;
  /// Between rounds: until `time` is over, the dispatcher stops, or there is a reason to begin earlier.
  virtual void wait(Duration time) { on_.stop.wait(time); }
  /// After the last round.
  virtual void end() {}

 protected:
  const DutyContext on_;
};

}  // namespace takt
