#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/db/database.h"
#include "worker/run_control.h"

namespace takt {

/// Renews the leases of every run of this process, all with one statement a round. Thread-safe.
class Heartbeat {
 public:
  explicit Heartbeat(Database& database) : database_(database) {}

  void add(std::int64_t run_id, const std::string& tick_id, Duration lease, std::shared_ptr<RunControl> control);
  void remove(std::int64_t run_id);
  /// Renews what has used a third of its lease. A run whose lease PostgreSQL no longer knows is told so, and so is one
  /// whose lease has run out on this process's clock while PostgreSQL was away. Returns how many were renewed.
  int beat(SteadyTime now);
  /// Passes stop() or cancel() to every run.
  void for_each(const std::function<void(RunControl&)>& tell);

 private:
  struct Entry {
    std::string tick_id;
    Duration lease;
    std::shared_ptr<RunControl> control;
    SteadyTime renewed;
  };
  Database& database_;
  std::mutex mutex_;
  std::map<std::int64_t, Entry> runs_;  // guarded by mutex_
};

}  // namespace takt
