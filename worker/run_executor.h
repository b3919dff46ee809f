#pragma once
#include <memory>
#include <mutex>
#include <optional>

#include "core/db/database.h"
#include "core/metrics.h"
#include "core/random.h"
#include "core/tick.h"
#include "worker/claim.h"
#include "worker/handler.h"
#include "worker/heartbeat.h"
#include "worker/job_catalog.h"
#include "worker/settle.h"

namespace takt {

/// One tick from ledger to settling: accept → claim → handle → settle. Thread-safe; one call a tick.
class RunExecutor {
 public:
  struct Handlers {
    Handler& http;
    Handler& sql;
  };
  struct Outcome {
    bool duplicate = false;  ///< nothing was done
    RunRecord run;
    Settled settled;
    std::string next_tick_id;  ///< set if a continuation tick is to be published
  };

  RunExecutor(Database& database, Handlers handlers, Heartbeat& heartbeat, Random& random, Metrics& metrics, std::string worker_id);

  /// `job` must outlive the call. Throws DatabaseUnavailable if PostgreSQL went away before the claim was known to be
  /// committed; the tick can then be given to execute() again. Once items are held, it waits for PostgreSQL to come
  /// back, so that what was done is also written down, until `give_up` says otherwise.
  /// `stopping`: asked once the items are held; if true, none is begun and all are handed back.
  Outcome execute(const CatalogJob& job, const v1::JobTick& tick, const std::function<bool()>& give_up,
                  const std::function<bool()>& stopping);

 private:
  Claim begin(const CatalogJob& job, const v1::JobTick& tick, const std::string& source, std::int64_t run_id,
              const std::function<bool()>& give_up);
  void handle(const CatalogJob& job, RunRecord& run, const std::shared_ptr<RunControl>& control);
  Settled settle(RunRecord& run, const std::function<bool()>& give_up);
  void report(const RunRecord& run, const Settled& settled, bool lost);
  std::int64_t next_run_id();

  Database& database_;
  Handlers handlers_;
  Heartbeat& heartbeat_;
  Random& random_;
  Metrics& metrics_;
  const std::string worker_id_;
  std::mutex ids_mutex_;
  RunIds ids_;  // guarded by ids_mutex_
};

}  // namespace takt
