#pragma once
#include "core/db/database.h"
#include "core/observe/metrics.h"

namespace takt {

/// What the leader's gauges show of PostgreSQL: backlog, oldest age and blocked items a job, open dead letters, outboxes. Every
/// count stops at 10,000, and a statement reads 200 jobs at most, so each one's cost is bounded.
LeaderGauges read_gauges(Database& database);

}  // namespace takt
