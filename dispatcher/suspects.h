#pragma once
#include <optional>

#include "core/db/database.h"
#include "core/tick/tick_message.h"
#include "dispatcher/leadership.h"

namespace takt {

/// One round of the search for an item that kills its worker. Suspects (lease_rescue.h) are claimed one at a time, over the
/// whole installation, each under a tick of its own with the source `alone`: so a worker that vanishes once more had one
/// suspect at most, and nothing innocent is blamed for it. A tick that no worker begins within 10 s, and a run that has
/// gone on for 30 s, hold up the others no longer. Suspects of paused or removed jobs, and of those whose destination is
/// left alone, wait. Two index probes while there is no suspect.
struct Suspects {
  bool any = false;             ///< some item is suspect, due or not
  std::optional<TickRow> tick;  ///< newly stored, to be published
};
Suspects wake_next_suspect(Database& database, const Term& term);

}  // namespace takt
