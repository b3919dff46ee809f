#pragma once
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/installation/presence.h"
#include "core/time/time.h"
#include "worker/settle.h"

namespace takt {

/// Jobs whose latest attempts all failed in this process, for its sign of life: so a secret, a route or a function that is wrong in one
/// worker of many is found by name. Thread-safe. Memory: at most kMost jobs, kErrorBytes of an error each.
class FailingJobs {
 public:
  static constexpr std::size_t kMost = 1000, kErrorBytes = 200;
  /// So many in a row make a job a failing one; fewer, where an item died of them. Fewer than that are told after a while without a
  /// success: where the next attempt comes in minutes, so would the word. The reader asks whether others succeeded meanwhile.
  static constexpr int kInARow = 3;
  static constexpr Duration kFewAfter = std::chrono::seconds(1);
  /// After its last failure, or the last retry that was put off by it: another worker may have done its items since.
  static constexpr Duration kForgotten = std::chrono::minutes(2);

  explicit FailingJobs(const Clock& clock) : clock_(clock) {}

  /// Nothing but a look at an atomic where all of a run's items succeeded and no job fails. No line in the log: a job of whose items
  /// every other fails would fill it, and each run says in its own line what failed.
  void note(const RunRecord& run);
  /// The worst first.
  std::vector<FailingJob> list();

 private:
  struct Entry {
    std::int64_t attempts = 0;
    bool died = false;  // an item
    std::string error;
    SteadyTime first{}, until{};
  };
  const Clock& clock_;
  std::atomic<bool> any_{false};
  std::mutex mutex_;
  std::map<std::string, Entry> jobs_;  // guarded by mutex_
};

}  // namespace takt
