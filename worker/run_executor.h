#pragma once
#include <memory>
#include <mutex>
#include <optional>

#include "core/db/database.h"
#include "core/observe/metrics.h"
#include "core/process/random.h"
#include "core/tick/tick.h"
#include "worker/chains.h"
#include "worker/claim.h"
#include "worker/failing_jobs.h"
#include "worker/handler.h"
#include "worker/heartbeat.h"
#include "worker/job_catalog.h"
#include "worker/settle.h"
#include "worker/shared_circuits.h"

namespace takt {

/// One tick from ledger to settling: begin (accept, claim), then finish (handle, settle). Thread-safe; one run is one
/// thread's at a time.
class RunExecutor {
 public:
  struct Handlers {
    Handler& http;
    Handler& sql;
    Handler& native;
  };
  /// A run that has started: its items are this process's until its lease ends.
  struct UnderWay {
    std::shared_ptr<const CatalogJob> job;
    RunRecord run;
    SteadyTime began;
    SteadyTime searched;  ///< when this chain of runs last looked for the oldest item of all
  };
  struct Outcome {
    RunRecord run;
    Settled settled;
    std::string next_tick_id;      ///< set if a continuation tick is stored and to be published
    std::optional<UnderWay> next;  ///< set if the continuation has started, and is to be finished by the caller
  };
  struct Waits {
    std::function<bool()> give_up;   ///< true: do not wait any longer for PostgreSQL, or for a lock in it
    std::function<bool()> stopping;  ///< asked once the items are claimed; if true, none is tried and all are handed back
  };

  RunExecutor(Database& database, Handlers handlers, Heartbeat& heartbeat, const Clock& clock, Random& random, Metrics& metrics,
              std::string worker_id);

  /// nullopt: the tick was seen before, and nothing is to be done. Throws DatabaseUnavailable if PostgreSQL went away
  /// before the claim was known to be committed; the tick can then be given to begin() again.
  std::optional<UnderWay> begin(std::shared_ptr<const CatalogJob> job, const v1::JobTick& tick, const std::function<bool()>& give_up);
  /// Waits for PostgreSQL to come back, and for locks that others hold, under a living lease, so that what was done is also
  /// written down, until `give_up` says otherwise. What a handler throws is its items' error.
  /// `continue_here` is asked before settling: the job's present definition if this thread would take the next batch
  /// itself, which saves a message and a round trip; nullptr to leave it to the queue.
  Outcome finish(UnderWay&& under_way, const Waits& waits, const std::function<std::shared_ptr<const CatalogJob>()>& continue_here);

  /// For a tick that only wakes the job, and has no row: whether this worker leaves its destination alone at this moment, so that
  /// nothing would be claimed, and for how long. Of a job for which it lacks nothing.
  [[nodiscard]] std::optional<Duration> leaves_alone(const JobDefinition& job, const v1::JobTick& tick) const;
  /// Tells the dispatcher that ticks for this job's due items are of no use at this moment: a second's pause at most, since
  /// for another worker they may well be of use.
  void hold(const CatalogJob& job, Duration pause, const std::string& why = "");
  /// For a tick that cannot be begun at this moment, and must keep no place meanwhile: here and elsewhere its job's set-up is
  /// incomplete, or a transaction holds a key of its items. One that only wakes the job is held for a second; of another
  /// PostgreSQL has a row when this returns, and the dispatcher sends it again.
  void put_off(const CatalogJob& job, const v1::JobTick& tick);

  /// What this process lacks to do the job's items; empty: nothing.
  [[nodiscard]] std::string lacks(const JobDefinition& job) const { return handler_of(job).lacks(job); }
  [[nodiscard]] std::vector<FailingJob> failing() { return failing_.list(); }
  [[nodiscard]] SharedCircuits& circuits() { return circuits_; }

 private:
  [[nodiscard]] Handler& handler_of(const JobDefinition& job) const;
  [[nodiscard]] Readiness readiness(const JobDefinition& job) const;
  UnderWay started(std::shared_ptr<const CatalogJob> job, const std::string& tick_id, std::int64_t run_id, Claim&& claim);
  void handle(const CatalogJob& job, RunRecord& run, const std::shared_ptr<RunControl>& control);
  void spare_last_attempts(RunRecord& run, Duration took);
  Settled settle(RunRecord& run, SteadyTime searched, const std::shared_ptr<const CatalogJob>& next_job,
                 const std::function<bool()>& give_up, std::optional<UnderWay>& next);
  void report(const RunRecord& run, const Settled& settled, bool lost);
  std::int64_t next_run_id();

  Database& database_;
  const Clock& clock_;
  Handlers handlers_;
  Chains chains_;
  Heartbeat& heartbeat_;
  Random& random_;
  Metrics& metrics_;
  FailingJobs failing_;
  SharedCircuits circuits_;
  const std::string worker_id_;
  std::mutex ids_mutex_;
  RunIds ids_;  // guarded by ids_mutex_
};

}  // namespace takt
