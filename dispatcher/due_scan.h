#pragma once
#include <optional>
#include <vector>

#include "core/db/database.h"
#include "core/tick_message.h"
#include "dispatcher/leadership.h"

namespace takt {

struct DueScanResult {
  std::vector<TickRow> ticks;       ///< wake ticks, to be published at once
  std::optional<Duration> next_in;  ///< until the next item of any job is due
};

/// Wakes jobs that have due items and not enough ticks under way. One statement. It steps through items_due from job
/// to job (a loose index scan), so it costs one index probe per job and priority that has pending items, whatever the
/// backlog; jobs without pending items cost nothing.
///
/// A job gets one tick when none is under way, and up to `parallel_ticks` while a run has reported more to do. A tick
/// counts as under way while its run's lease holds, and for 10 s after it was made: a lost one is replaced then.
DueScanResult scan_due_items(Database& database, const Term& term, int parallel_ticks);

}  // namespace takt
