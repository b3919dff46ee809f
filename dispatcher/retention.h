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
  [[nodiscard]] bool anything() const { return ticks + keys + dead_letters + audit > 0; }
  /// Whether more of a kind may be left than went in this round of `batch`.
  [[nodiscard]] bool more(int batch) const { return std::max({ticks, keys, dead_letters, audit}) >= batch; }
};

/// Removes what is older than its retention: at most `batch` rows of each kind, so that it can be repeated until nothing is
/// left without ever holding many locks. Two at once do no harm. A kind that fails keeps no other from its turn: what failed
/// first is thrown once all were tried.
Pruned prune_once(Database& database, const RetentionSettings& settings, int batch);

/// Removes audit rows older than `keep`, at most `batch`, oldest first; returns how many.
int prune_audit(Database& database, Duration keep, int batch);

/// Makes the partitions of history for the coming days. Waits for nobody who reads or writes it, and up to the session's
/// lock_timeout for another who makes some. Returns where the last one ends. Throws DatabaseError 55P03 where a table is being
/// altered, or that other takes too long.
Timestamp ensure_partitions(Database& database, Duration history);

/// Has PostgreSQL count the rows of tables that grew since it took them for empty, so that it makes their statements' plans anew.
/// Returns how many. For an installation whose tables are all counted: one look into the catalog, no lock.
int analyze_grown(Database& database);

struct DroppedPartitions {
  int count = 0;
  std::string in_use;  ///< what was left for later, since transactions use it; empty: none
};

/// Drops partitions that ended before `history` ago, oldest first, at most 30. What is in use is left for later: claims and
/// settlings would have to wait behind it.
DroppedPartitions drop_old_partitions(Database& database, Duration history);

}  // namespace takt
