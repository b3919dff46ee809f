#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/config/job.h"
#include "core/db/database.h"
#include "core/db/database_clock.h"

namespace takt {

struct CatalogJob {
  std::int64_t id;
  JobDefinition definition;
};

/// Why a name has no job that this process can run.
enum class NoJob {
  unknown,     ///< PostgreSQL has none of this name, or it was removed
  unreadable,  ///< it has one, but this binary does not understand its definition: a newer one wrote it
};
using CatalogAnswer = std::variant<std::shared_ptr<const CatalogJob>, NoJob>;

/// The job definitions as PostgreSQL has them. Thread-safe. A run keeps the definition it began with: entries are
/// shared and never changed, only replaced. Holds one entry a job that is not removed, and nothing of other names.
///
/// One query at a time asks for what changed; whoever needs an answer meanwhile waits for it. So an older definition
/// never replaces a newer one, and a crowd of callers costs PostgreSQL one statement.
class JobCatalog {
 public:
  JobCatalog(Database& database, DatabaseClock& clock) : database_(database), clock_(clock) {}

  /// Reads what changed since the last time, and PostgreSQL's time for `clock`; one cheap statement when nothing did.
  /// Waits for at most one other query before its own.
  void refresh();
  /// refresh(), once a second at most: what comes meanwhile waits for the query under way, or has its answer.
  void refresh_rarely();
  /// A name that is not known is looked for in PostgreSQL, by a query that began after this call: `unknown` is what
  /// PostgreSQL said just now. At most ten such queries a second, whatever the number of names and callers.
  /// Throws DatabaseUnavailable or DatabaseError when PostgreSQL does not answer.
  CatalogAnswer look_up(const std::string& name);
  /// The job as of the last query; nullptr if it is unknown, removed or unreadable. Asks PostgreSQL nothing.
  std::shared_ptr<const CatalogJob> known(const std::string& name);
  /// All jobs as of the last query that are readable, by name.
  std::vector<std::shared_ptr<const CatalogJob>> jobs();
  /// The queues of all jobs as of the last query, and `default`; sorted, each once.
  std::vector<std::string> queues();

 private:
  struct Entry {
    std::int64_t version;
    std::string queue;
    std::shared_ptr<const CatalogJob> job;  // null: unreadable
  };
  struct Change {
    std::string name;
    bool removed;
    Entry entry;
  };
  using Lock = std::unique_lock<std::mutex>;

  void ask(Lock& lock, std::uint64_t number);
  std::vector<Change> read_changes(std::int64_t since);
  void take(const std::vector<Change>& changes);

  Database& database_;
  DatabaseClock& clock_;
  std::mutex mutex_;
  std::condition_variable answered_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_
  std::int64_t version_ = 0;              // the latest seen; guarded by mutex_
  std::uint64_t asked_ = 0, ended_ = 0;   // queries; ended_ is one less while one is under way; guarded by mutex_
  std::optional<std::string> failure_;    // of the last query that ended; guarded by mutex_
  SteadyTime last_look_up_{};             // guarded by mutex_
  SteadyTime last_rarely_{};              // of refresh_rarely(); guarded by mutex_
};

}  // namespace takt
