#pragma once
#include <string>
#include <vector>

#include "core/db/database.h"
#include "core/tick/tick.h"
#include "worker/item.h"
#include "worker/job_catalog.h"

namespace takt {

/// Where a tick came from. Ticks that PostgreSQL knows carry it in their row; others tell it by their id.
std::string tick_source(const std::string& tick_id);

enum class ClaimOutcome {
  claimed,    ///< the run has started; it may have claimed no items
  duplicate,  ///< the tick was seen before: finished, or another run has it
  locked,     ///< the run has started, but another run of the job holds the overlap lock
};

struct Claim {
  ClaimOutcome outcome = ClaimOutcome::duplicate;
  std::string source;
  std::vector<ClaimedItem> items;
};

struct ClaimRequest {
  const CatalogJob& job;
  std::string tick_id;
  Timestamp due_at;
  std::string source;
  std::int64_t run_id;  ///< the fencing token
  std::string worker;
  int batch_size;  ///< 0 claims nothing
  bool dry_run = false;
  bool goes_on = false;  ///< begin where the run before ended, instead of at the oldest item
};

/// Stores a tick's inline items together with its ledger entry, once however often the tick arrives: one statement.
/// A tick without inline items that came from outside, for a job with item_per_tick, brings one item keyed by itself.
/// False, and nothing is stored: another transaction has locked a key of theirs, and did not end within 100 ms.
[[nodiscard]] bool accept_inline_items(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source);

/// How many items accept_inline_items() would store.
int items_carried(const CatalogJob& job, const v1::JobTick& tick, const std::string& source);

/// Stores a tick that is not begun, with its items unless they are accepted, to be sent again by the dispatcher: after a quarter
/// of its age, but at least a second and at most a minute. Does nothing with one that is finished or that a run has begun.
void put_off_tick(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source);
/// Finishes a tick that no run has begun.
void end_unbegun_tick(Database& database, const std::string& tick_id);

/// Begins a run: ledger entry, overlap lock, and at most batch_size due items, oldest first within priority, under a
/// lease with the fencing token. One statement, committed when this returns. If PostgreSQL was lost in between, call
/// it again with the same run_id: what was committed is found, not claimed twice. Items of a paused job stay. What is too large
/// together is claimed an item at a time, and one that is too large by itself is blocked.
Claim claim_batch(Database& database, const ClaimRequest& request);
/// The claim that was committed under this run_id, if it was and is still the run's.
Claim recover_claim(Database& database, const std::string& tick_id, std::int64_t run_id);

/// Ids for runs, fetched a hundred at a time. Not thread-safe.
class RunIds {
 public:
  explicit RunIds(Database& database) : database_(database) {}
  std::int64_t next();

 private:
  Database& database_;
  std::vector<std::int64_t> ids_;
};

/// Due items of a job, oldest first, without touching them: for dry runs.
std::vector<ClaimedItem> peek_due_items(Database& database, std::int64_t job_id, int most);

}  // namespace takt
