#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/db/database.h"
#include "worker/run_control.h"

namespace takt {

/// Renews the leases of every run of this process, all with one statement a round, and never waits for a run's row: one that
/// is being settled at this moment is left alone. Thread-safe.
class Heartbeat {
 public:
  /// `database`: a connection of its own, so that statements which wait for locks do not keep it out.
  explicit Heartbeat(Database& database) : database_(database) {}

  void add(std::int64_t run_id, const std::string& tick_id, Duration lease, std::shared_ptr<RunControl> control);
  void remove(std::int64_t run_id);
  /// Renews what has used a third of its lease. A run whose lease PostgreSQL no longer knows is told so, and so is one
  /// whose lease has run out on this process's clock while PostgreSQL was away. Returns how many were renewed.
  int beat(SteadyTime now);
  /// From now on the run's settling says what became of it: it is kept alive as long as it is there, and never told lost.
  void settling(std::int64_t run_id);
  /// Renews one run's lease at once, also if it is over and nobody has taken the run yet: between two tries to settle it.
  /// Does not throw.
  void renew(std::int64_t run_id);
  /// Passes stop() or cancel() to every run.
  void for_each(const std::function<void(RunControl&)>& tell);

 private:
  struct Entry {
    std::string tick_id;
    Duration lease;
    std::shared_ptr<RunControl> control;
    SteadyTime renewed;
    SteadyTime seen;  ///< last known to be this process's, renewed or not
    bool settling = false;
  };
  int beat(const std::vector<std::int64_t>& runs, SteadyTime now);
  Database& database_;
  std::mutex mutex_;
  std::map<std::int64_t, Entry> runs_;  // guarded by mutex_
};

/// Keeps a run's lease alive as long as it exists, whatever is thrown meanwhile.
class LivingLease {
 public:
  LivingLease(Heartbeat& heartbeat, std::int64_t run_id, const std::string& tick_id, Duration lease, std::shared_ptr<RunControl> control)
      : heartbeat_(heartbeat), run_id_(run_id) {
    heartbeat_.add(run_id, tick_id, lease, std::move(control));
  }
  ~LivingLease() { heartbeat_.remove(run_id_); }
  LivingLease(const LivingLease&) = delete;
  LivingLease& operator=(const LivingLease&) = delete;

 private:
  Heartbeat& heartbeat_;
  const std::int64_t run_id_;
};

}  // namespace takt
