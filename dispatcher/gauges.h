#pragma once
#include "core/db/database.h"
#include "core/metrics.h"

namespace takt {

/// Sets the gauges that are read from PostgreSQL: backlog, oldest age and blocked items per job, open dead letters,
/// outboxes. Every count stops at 10,000, so its cost is bounded.
void refresh_gauges(Database& database, Metrics& metrics);

}  // namespace takt
