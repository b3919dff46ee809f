#pragma once
#include <string>
#include <vector>

#include "core/db/database.h"
#include "worker/claim.h"
#include "worker/item.h"
#include "worker/job_catalog.h"
#include "worker/settle_policy.h"

namespace takt {

enum class RunStatus { completed, locked, failed };
std::string_view to_string(RunStatus status);

/// What one worker did for one tick.
struct RunRecord {
  std::int64_t run_id = 0;
  const CatalogJob* job = nullptr;
  std::string tick_id;
  std::string source;
  std::string worker;
  RunStatus status = RunStatus::completed;
  bool dry_run = false;
  int scanned = 0;
  double oldest_age_s = 0;
  double duration_ms = 0;
  std::vector<ClaimedItem> items;
  std::vector<HandlerResult> results;   ///< one an item
  std::vector<Settlement> settlements;  ///< one an item
  bool drains = false;                  ///< a continuation follows if more is due
};

struct Settled {
  bool recorded = false;   ///< the tick was this run's to finish
  int items = 0;           ///< items that were this run's to settle
  int remaining = 0;       ///< due afterwards, counted up to 100, or to the next batch where it followed at once
  bool continues = false;  ///< more is due, and a continuation follows
};

/// The id of the tick that continues a run: the same whoever asks.
std::string continuation_id(std::int64_t run_id);
/// The tick under which a worker that goes on by itself begins the next run: that of a run which is a continuation already
/// serves a whole chain, as long as every item ends done.
std::string next_tick_id(const RunRecord& run);

/// Settles anew what was to die of `max_attempts`, with those attempts left out that were lost with their worker: somebody else
/// in that process may have been the cause. Asks PostgreSQL only if there is such an item. `uniform`: see settle_item().
void spare_lost_attempts(Database& database, RunRecord& run, double uniform);

/// Writes a run's whole outcome in one statement: items, history, attempts, dead-letter outbox, overlap lock, tick, run,
/// and the row of the continuation tick. A run that is no longer this worker's is left alone. Committed when this
/// returns; repeating it after a lost connection changes nothing that was written. Throws a retryable DatabaseError after half
/// a second where somebody else holds a lock that it needs (a lease may be as short as 2 s): renew the lease and try again.
Settled settle_run(Database& database, const RunRecord& run);

/// The same, and where a continuation follows, begins its run (`next`, whose tick is next_tick_id()) in the same
/// statement and commit. `claim` is what that run claimed; `duplicate` if none has started.
Settled settle_and_claim(Database& database, const RunRecord& run, const ClaimRequest& next, Claim& claim);

/// Whether `next` begins under the tick of `run`, which leaves nothing behind: then many can share a statement.
bool goes_on_in_place(const RunRecord& run, const ClaimRequest& next);

/// A run of a chain that ends, the one that follows it, and what became of both.
struct Continuation {
  const RunRecord& run;
  const ClaimRequest& next;
  Claim& claim;
  Settled settled;
};

/// settle_and_claim() for many runs of one job that go on in place, with one batch size: one statement, one commit.
void settle_and_claim(Database& database, const std::vector<Continuation*>& chains);

}  // namespace takt
