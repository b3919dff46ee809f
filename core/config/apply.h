#pragma once
#include <string>
#include <vector>

#include "core/config/config.h"
#include "core/db/database.h"

namespace takt {

/// One difference between a file and the database: '+' new, '~' changed, '-' removed.
struct DefinitionChange {
  char sign;
  std::string subject;  ///< "job billing.renewals", "schedule billing.renewals/daily"
  std::string detail;   ///< what changes, "batch_size: 10 → 20"; empty for new and removed
};

/// Makes the database's definitions match the file, in one transaction under a lock, and returns what differed; with
/// `dry_run` changes nothing. Definitions made by the API are left alone. Safe at every start, from many pods at once.
/// A removed job keeps its items and history; a schedule whose expression changed goes on from now.
std::vector<DefinitionChange> apply_definitions(Database& database, const Config& config, const std::string& who, bool dry_run);

/// Pauses or resumes a job, or one schedule "job/schedule". False if there is none. Resuming goes on from now.
bool set_job_paused(Database& database, const std::string& job, bool paused, const std::string& who);
bool set_schedule_paused(Database& database, const std::string& job, const std::string& schedule, bool paused, const std::string& who);

}  // namespace takt
