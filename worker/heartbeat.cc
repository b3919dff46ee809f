#include "worker/heartbeat.h"

#include "core/db/query.h"
#include "core/observe/log.h"

namespace takt {

namespace {

/// Runs, a place in each array for each.
struct Mine {
  std::vector<std::string> ticks;
  std::vector<std::int64_t> runs, leases_ms;
  static constexpr auto fields() { return std::tuple(&Mine::ticks, &Mine::runs, &Mine::leases_ms); }
};
/// One that is still the caller's.
struct Known {
  std::int64_t run_id = 0;
  bool renewed = false;
  static constexpr auto fields() { return std::tuple(Field("run_id", &Known::run_id), Field("renewed", &Known::renewed)); }
};

// Ticks by primary key; the token keeps a run that was rescued from renewing its successor's lease. SKIP LOCKED: a row that is
// locked is being settled, or rescued; which of the two the next round will tell. A lease that is over is renewed as well,
// unless its job allows one run at a time: then another may have begun.
constexpr Query<Mine, Known> kBeat{"heartbeat", R"sql(
  WITH mine AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS m(tick_id, run_id, lease_ms)),
  known AS (
    SELECT m.* FROM mine m JOIN takt.ticks t ON t.id = m.tick_id AND t.run_id = m.run_id
     WHERE t.finished_at IS NULL
       AND (t.lease_until > now() OR NOT EXISTS (SELECT 1 FROM takt.jobs j WHERE j.id = t.job_id AND j.concurrency = 1))),
  free AS (
    SELECT t.id, k.run_id, k.lease_ms FROM known k JOIN takt.ticks t ON t.id = k.tick_id AND t.run_id = k.run_id
     WHERE t.finished_at IS NULL
       FOR NO KEY UPDATE OF t SKIP LOCKED),
  renewed AS (
    UPDATE takt.ticks t SET lease_until = now() + f.lease_ms * interval '1 ms' FROM free f WHERE t.id = f.id
    RETURNING f.run_id, t.lease_until),
  locks AS (
    UPDATE takt.job_locks l SET until = r.lease_until FROM renewed r WHERE l.run_id = r.run_id)
  SELECT k.run_id, k.run_id IN (SELECT run_id FROM renewed) AS renewed FROM known k
)sql"};

}  // namespace

void Heartbeat::add(std::int64_t run_id, const std::string& tick_id, Duration lease, std::shared_ptr<RunControl> control) {
  const std::scoped_lock lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  runs_[run_id] = {tick_id, lease, std::move(control), now, now, false};
}

void Heartbeat::settling(std::int64_t run_id) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = runs_.find(run_id); found != runs_.end()) found->second.settling = true;
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
  std::vector<std::int64_t> due;
  // A run within a chain may begin with nine tenths of a lease: see takt.go_on.
  {
    const std::scoped_lock lock(mutex_);
    for (auto& [id, entry] : runs_) {
      if (entry.control->lost() && !entry.settling) continue;
      if (now - entry.seen > entry.lease / 10 * 9 && !entry.settling) {
        log_warn("lease lost", {{"run", id}, {"tick", entry.tick_id}, {"why", "PostgreSQL could not be reached in time"}});
        entry.control->lose_lease();
      } else if (now - entry.renewed > entry.lease / 3) {
        due.push_back(id);
      }
    }
  }
  return due.empty() ? 0 : beat(due, now);
}

void Heartbeat::renew(std::int64_t run_id) {
  try {
    beat({run_id}, std::chrono::steady_clock::now());
  } catch (const std::exception& error) {
    log_debug("lease not renewed", {{"run", run_id}, {"error", error.what()}});
  }
}

int Heartbeat::beat(const std::vector<std::int64_t>& runs, SteadyTime now) {
  Mine mine;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto id : runs) {
      const auto found = runs_.find(id);
      if (found == runs_.end()) continue;
      mine.ticks.push_back(found->second.tick_id);
      mine.runs.push_back(id);
      mine.leases_ms.push_back(found->second.lease.count());
    }
  }
  if (mine.runs.empty()) return 0;
  std::map<std::int64_t, bool> known;
  for (const auto& run : query_retrying(database_, kBeat, mine)) known[run.run_id] = run.renewed;
  int renewed = 0;
  const std::scoped_lock lock(mutex_);
  for (const auto id : mine.runs) {
    const auto found = runs_.find(id);
    if (found == runs_.end()) continue;  // settled meanwhile
    if (const auto ours = known.find(id); ours != known.end()) {
      found->second.seen = now;
      if (ours->second) found->second.renewed = now;
      renewed += ours->second ? 1 : 0;
    } else if (!found->second.settling && !found->second.control->lost()) {
      log_warn("lease lost", {{"run", id}, {"tick", found->second.tick_id}, {"why", "another worker has the items"}});
      found->second.control->lose_lease();
    }
  }
  return renewed;
}

}  // namespace takt
