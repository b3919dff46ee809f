#pragma once
#include "core/db/query.h"
#include "dispatcher/leadership.h"

namespace takt {

struct Rescued {
  int runs = 0;
  int returned = 0;
  int dead = 0;
  int suspect = 0;  ///< of those returned
  static constexpr auto fields() {
    return std::tuple(Field("runs", &Rescued::runs), Field("returned", &Rescued::returned), Field("dead", &Rescued::dead),
                      Field("suspect", &Rescued::suspect));
  }
};

/// Ends runs whose worker vanished: their items become pending again, the lost attempt counts, the run is recorded as
/// failed, and the tick is published again unless the due-scan covers it. An item that was lost twice in a row becomes
/// suspect: from then on it is claimed alone (suspects.h). An item dies only of a loss in which it was alone: under a tick
/// of its own, or as all that its worker held. So an item that kills its worker ends dead, and none of its company does.
/// One round, at most `batch` runs; cheap when there is nothing to do (one index probe). If they are too large together
/// for one statement, they are rescued in parts, by halves. A run that is too large by itself is left for a minute. What was
/// rescued when a part throws stays rescued.
Rescued rescue_expired_leases(Database& database, const Term& term, int batch);

/// Publishes again what the broker seems to have lost: ticks of schedules, operators and replays that were published
/// before `after` and never begun; and forgets wake ticks of the same age. At most 1,000 a round; returns how many.
int republish_forgotten_ticks(Database& database, const Term& term, Duration after);

}  // namespace takt
