#include "worker/heartbeat.h"

#include <set>

#include "core/log.h"

namespace takt {

namespace {

// Ticks by primary key; the token keeps a run that was rescued from renewing its successor's lease.
constexpr Statement kBeat{"heartbeat", R"sql(
  WITH mine AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS m(tick_id, run_id, lease_ms)),
  renewed AS (
    UPDATE takt.ticks t SET lease_until = now() + m.lease_ms * interval '1 ms'
      FROM mine m WHERE t.id = m.tick_id AND t.run_id = m.run_id AND t.finished_at IS NULL AND t.lease_until > now()
    RETURNING m.run_id, t.lease_until),
  locks AS (
    UPDATE takt.job_locks l SET until = r.lease_until FROM renewed r WHERE l.run_id = r.run_id)
  SELECT run_id FROM renewed
)sql"};

}  // namespace

void Heartbeat::add(std::int64_t run_id, const std::string& tick_id, Duration lease, std::shared_ptr<RunControl> control) {
  const std::scoped_lock lock(mutex_);
  runs_[run_id] = {tick_id, lease, std::move(control), std::chrono::steady_clock::now()};
}

void Heartbeat::remove(std::int64_t run_id) {
  const std::scoped_lock lock(mutex_);
  runs_.erase(run_id);
}

void Heartbeat::for_each(const std::function<void(RunControl&)>& tell) {
  const std::scoped_lock lock(mutex_);
  for (auto& [id, entry] : runs_) tell(*entry.control);
}

int Heartbeat::beat(SteadyTime now) {
  std::vector<std::string> ticks;
  std::vector<std::int64_t> runs, leases;
  // A run within a chain may begin with nine tenths of a lease: see takt.go_on.
  {
    const std::scoped_lock lock(mutex_);
    for (auto& [id, entry] : runs_) {
      if (entry.control->lost()) continue;
      if (now - entry.renewed > entry.lease / 10 * 9) {
        log_warn("lease lost", {{"run", id}, {"tick", entry.tick_id}, {"why", "PostgreSQL could not be reached in time"}});
        entry.control->lose_lease();
      } else if (now - entry.renewed > entry.lease / 3) {
        ticks.push_back(entry.tick_id);
        runs.push_back(id);
        leases.push_back(entry.lease.count());
      }
    }
  }
  if (runs.empty()) return 0;
  const auto rows = database_.exec_retrying(kBeat, Params::of(ticks, runs, leases));
  std::set<std::int64_t> renewed;
  for (std::size_t i = 0; i < rows.size(); ++i) renewed.insert(rows.integer(i, 0));
  const std::scoped_lock lock(mutex_);
  for (const auto id : runs) {
    const auto found = runs_.find(id);
    if (found == runs_.end()) continue;  // settled meanwhile
    if (renewed.contains(id)) {
      found->second.renewed = now;
    } else {
      log_warn("lease lost", {{"run", id}, {"tick", found->second.tick_id}, {"why", "another worker has the items"}});
      found->second.control->lose_lease();
    }
  }
  return static_cast<int>(renewed.size());
}

}  // namespace takt
