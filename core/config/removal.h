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
/// The version that its removal gave the job; nothing if it is not removed.
std::optional<std::int64_t> removal_of(Database& database, std::int64_t job_id);
/// Jobs that were removed and still have items, by name. Reads three index entries a removed job, and counts for these alone.
std::vector<Backlog> removed_with_items(Database& database);

/// Finishes the ticks of a job that no worker has begun, so that none is published again, and stores the items they carry.
void end_unbegun_ticks(Session& on, std::int64_t job_id);

/// Who acts, and by what, for the audit.
struct Actor {
  std::string who;
  std::string origin;  ///< "command line" or "file"
};
struct Cancelled {
  std::int64_t items = 0;    ///< that are known to be cancelled, whatever stopped the rest; one batch more if a commit's answer was lost
  std::string stopped_by;    ///< why some may be left; empty: none are
  bool job_is_back = false;  ///< it stopped because of that: what is left is the job's work
};
constexpr int kCancelBatch = 5000;
/// Cancels what waited when it was called, `batch` items a transaction, each with its line in the audit: what is done stays done, and
/// no key is locked for longer than a batch takes. Running items stay: a worker may be at them. `removal`: the
/// job's version since an apply removed it; it stops where the job was defined again, also if it was removed again then. Throws
/// nothing of the database's.
Cancelled cancel_waiting(Database& database, const Backlog& of, const Actor& by, std::optional<std::int64_t> removal,
                         int batch = kCancelBatch);

}  // namespace takt
