#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/config/config.h"
#include "core/config/removal.h"
#include "core/db/database.h"

namespace takt {

/// One difference between a file and the database: '+' new, '~' changed, '-' removed.
struct DefinitionChange {
  char sign;
  std::string subject;               ///< "job billing.renewals", "schedule billing.renewals/daily"
  std::string detail;                ///< what changes, "batch_size: 10 → 20"; of a removed job what is left of its work; else empty
  std::optional<Backlog> backlog{};  ///< of a removed job
  std::int64_t removal = 0;          ///< of a removed job: its version since
  std::int64_t cancelled = 0;        ///< of a removed job: items of it that were
  bool is_back = false;              ///< of a removed job: it was applied again before its items were cancelled
  std::string not_cancelled{};       ///< of a removed job: what kept its items from being cancelled; empty: nothing did
};

/// What becomes of jobs that the database has and the file does not name.
enum class Removal {
  refuse,  ///< where there are any, nothing is applied
  prune,   ///< they are removed; their items stay, and run once a job of that name is applied again
  cancel,  ///< they are removed, and then their items are cancelled; those running end by themselves
};

/// Makes the database's definitions match the file, in one transaction under a lock, and returns what differed; with
/// `dry_run`, or where it refuses, changes nothing. Items are cancelled after it, in transactions of their own (cancel_waiting()).
/// Definitions made by the API are left alone. Safe at every start, from many pods at once. A schedule whose expression changed goes on
/// from now. A removed job keeps its history; its ticks that nobody has begun are finished. What is enqueued for it in a transaction that
/// is open at this moment is found by removed_with_items().
std::vector<DefinitionChange> apply_definitions(Database& database, const Config& config, const std::string& who, bool dry_run,
                                                Removal removal = Removal::refuse);

/// The jobs that are removed by these changes, or would be.
std::vector<std::string> removed_jobs(const std::vector<DefinitionChange>& changes);

enum class Pausing {
  unknown,  ///< there is none of this name
  changed,
  was_so,  ///< nothing was changed, and nothing noted: whoever did it first stays named
};
/// Pauses or resumes a job, or one schedule "job/schedule". Resuming goes on from now.
Pausing set_job_paused(Database& database, const std::string& job, bool paused, const std::string& who);
Pausing set_schedule_paused(Database& database, const std::string& job, const std::string& schedule, bool paused, const std::string& who);

/// Has the workers try the destination of a job that is left alone within a second, for every job that it is of. False if it is not
/// left alone.
bool free_destination(Database& database, const std::string& job, const std::string& who);

}  // namespace takt
