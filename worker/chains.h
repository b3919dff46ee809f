#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <vector>

#include "core/db/database.h"
#include "worker/settle.h"

namespace takt {

/// Ends the runs of this process's chains and begins the next ones, those of small batches together: runs of one job that end
/// at about the same time share a statement and a commit, as commits share a sync. Each keeps its own row, lease and bound of
/// items (docs/decisions/0014). A run goes at once if no other of its job is being ended; otherwise it waits until as many
/// wait as are under way, so that the chains fall into two halves, one of which is in PostgreSQL while the other works.
/// Thread-safe.
class Chains {
 public:
  struct Settings {
    Duration patience = std::chrono::milliseconds(2);  ///< no run waits longer for others
    int items = 100;                                   ///< in one statement at most; a batch of as many goes alone and at once
  };

  explicit Chains(Database& database) : Chains(database, Settings()) {}
  Chains(Database& database, Settings settings) : database_(database), settings_(settings) {}

  /// As takt::settle_and_claim(). What its statement throws, it throws to every run that shared it.
  Settled settle_and_claim(const RunRecord& run, const ClaimRequest& next, Claim& claim);

 private:
  struct Waiting : Continuation {
    explicit Waiting(const Continuation& chain) : Continuation(chain) {}
    bool taken = false;
    bool done = false;
    std::exception_ptr error;
    std::condition_variable woken;
  };
  struct Job {
    std::deque<Waiting*> waiting;  ///< at most one a run thread
    int under_way = 0;             ///< runs that a statement is ending now
  };
  [[nodiscard]] bool may_go(const Job& job) const;
  [[nodiscard]] std::vector<Waiting*> company(Job& job, Waiting& leader) const;
  using Jobs = std::map<std::int64_t, Job>;
  void lead(std::unique_lock<std::mutex>& lock, Jobs::iterator at, Waiting& leader);

  Database& database_;
  const Settings settings_;
  std::mutex mutex_;
  Jobs jobs_;  // guarded by mutex_; those with something waiting or under way
};

}  // namespace takt
