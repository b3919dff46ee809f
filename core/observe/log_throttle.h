#pragma once
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "core/time/time.h"

namespace takt {

/// Decides which events of a kind get a line in the log: one a second. For what anybody may cause at any rate.
/// Thread-safe; holds two words a kind.
class LogThrottle {
 public:
  /// Kinds are numbered from 0 to `kinds` - 1.
  LogThrottle(const Clock& clock, std::size_t kinds, Duration pause = std::chrono::seconds(1));

  /// Called at each event. How many events its line stands for, this one and those since the last line; 0 if no line is due yet.
  std::uint64_t due(std::size_t kind);

 private:
  struct Kind {
    std::optional<SteadyTime> last_line;
    std::uint64_t events = 0;  // since then
  };

  const Clock& clock_;
  const Duration pause_;
  std::mutex mutex_;
  std::vector<Kind> kinds_;  // guarded by mutex_
};

}  // namespace takt
