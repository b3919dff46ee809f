#pragma once
#include <string>

#include "worker/settle.h"

namespace takt {

/// A run whose items all ended done.
inline RunRecord ended(const std::string& tick, std::int64_t run_id, const CatalogJob& job, const Claim& claim) {
  RunRecord run;
  run.run_id = run_id;
  run.job = &job;
  run.tick_id = tick;
  run.source = claim.source;
  run.worker = "test-worker";
  run.items = claim.items;
  run.scanned = static_cast<int>(claim.items.size());
  run.drains = true;
  HandlerResult done;
  done.item_class = ItemClass::done;
  run.results.assign(claim.items.size(), done);
  run.settlements.assign(claim.items.size(), {ItemState::done, Duration(0), true, ""});
  return run;
}

}  // namespace takt
