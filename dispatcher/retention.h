#pragma once
#include "core/db/database.h"

namespace takt {

struct RetentionSettings {
  Duration history{};
  Duration ticks{};
  Duration dead_letters{};
};

struct Pruned {
  int ticks = 0;
  int keys = 0;
  int dead_letters = 0;
  int partitions = 0;
  [[nodiscard]] bool anything() const { return ticks + keys + dead_letters + partitions > 0; }
};

/// Removes what is older than its retention: at most `batch` rows of each kind and three partitions, so that it can be
/// repeated until nothing is left without ever holding many locks. Also makes the partitions of the coming days.
/// Two at once do no harm.
Pruned prune_once(Database& database, const RetentionSettings& settings, int batch);

}  // namespace takt
