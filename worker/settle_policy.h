#pragma once
#include "core/config/job.h"
#include "worker/item.h"

namespace takt {

/// What becomes of an item after an attempt.
struct Settlement {
  ItemState state = ItemState::pending;
  Duration delay{};    ///< until run_at, for pending
  bool spent = true;   ///< the attempt counts
  std::string reason;  ///< for dead: why (max_attempts, max_age, or the result's own)
};

/// Pure: no I/O, no clock, no logger. `age` is the item's age now; `uniform` in [0, 1) is the jitter; `lost` are those of its
/// attempts that are no failures of the item's own: they ended with their worker, or as its destination came to be left alone.
Settlement settle_item(const ClaimedItem& item, const HandlerResult& result, const JobDefinition& job, Duration age, double uniform,
                       int lost = 0);

}  // namespace takt
