#pragma once
#include <algorithm>

#include "core/db/database.h"

namespace takt {

struct RetentionSettings {
  Duration history{};
  Duration ticks{};
  Duration dead_letters{};
  Duration audit = std::chrono::days(365);
};

struct Pruned {
  int ticks = 0;
  int keys = 0;
  int dead_letters = 0;
  int audit = 0;
  int partitions = 0;
  [[nodiscard]] bool anything() const { return ticks + keys + dead_letters + audit + partitions > 0; }
  /// Whether more of a kind may be left than went in this round of `batch`.
  [[nodiscard]] bool more(int batch) const { return std::max({ticks, keys, dead_letters, audit}) >= batch; }
};

/// Removes what is older than its retention: at most `batch` rows of each kind and three partitions, so that it can be
/// repeated until nothing is left without ever holding many locks. Also makes the partitions of the coming days.
/// Two at once do no harm.
Pruned prune_once(Database& database, const RetentionSettings& settings, int batch);

/// Removes audit rows older than `keep`, at most `batch`, oldest first; returns how many.
int prune_audit(Database& database, Duration keep, int batch);

}  // namespace takt
