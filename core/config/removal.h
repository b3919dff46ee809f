#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/db/database.h"

namespace takt {

/// What is left of a job's work. Items are counted up to kMostCounted + 1.
struct Backlog {
  static constexpr std::int64_t kMostCounted = 1'000'000;

  std::int64_t job_id;
  std::string job;
  std::int64_t waiting;  ///< pending, blocked or suspect, and those that a tick carries which nobody has begun
  std::int64_t blocked;  ///< of those waiting
  std::int64_t running;
  std::int64_t ticks;  ///< under way: stored or published, and not finished

  [[nodiscard]] bool has_items() const { return waiting + running > 0; }
  /// "12 items waiting (3 blocked), 2 running, 1 tick under way"; empty if nothing is left.
  [[nodiscard]] std::string text() const;
};

Backlog backlog_of(Session& on, std::int64_t job_id);
/// By name, of a removed job as well; nothing if there never was one.
std::optional<Backlog> backlog_of(Database& database, const std::string& job);
/// Jobs that were removed and still have items, by name. Reads three index entries a removed job, and counts for these alone.
std::vector<Backlog> removed_with_items(Database& database);

/// Finishes the ticks of a job that no worker has begun, so that none is published again, and stores the items they carry.
void end_unbegun_ticks(Session& on, std::int64_t job_id);
struct Cancelled {
  std::int64_t items = 0;  ///< that are known to be cancelled, whatever stopped the rest; one batch more if a commit's answer was lost
  std::string stopped_by;  ///< why some may be left; empty: none are
};
constexpr int kCancelBatch = 5000;
/// Cancels what waited when it was called, `batch` items a transaction, each with its line in the audit: what is done stays done, and
/// a key is held by nobody for longer than a batch takes. Running items stay: a worker may be at them. With `while_removed` it
/// stops where the job is defined again. Throws nothing of the database's.
Cancelled cancel_waiting(Database& database, const Backlog& of, const std::string& who, bool while_removed, int batch = kCancelBatch);

}  // namespace takt
