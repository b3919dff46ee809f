#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/config/job.h"
#include "core/db/database.h"
#include "core/db/database_clock.h"

namespace takt {

struct CatalogJob {
  std::int64_t id;
  JobDefinition definition;
};

/// The job definitions as PostgreSQL has them. Thread-safe. A run keeps the definition it began with: entries are
/// shared and never changed, only replaced.
class JobCatalog {
 public:
  JobCatalog(Database& database, DatabaseClock& clock) : database_(database), clock_(clock) {}

  /// Reads what changed since the last time, and PostgreSQL's time for `clock`; one cheap statement when nothing did.
  void refresh();
  /// refresh(), unless that was done in the last second already; false then.
  bool refresh_rarely();
  /// nullptr if the job is unknown or removed. A name that is not known is looked up once more in PostgreSQL, at most
  /// once a second over all names, so that forged or mistaken names cost nothing.
  std::shared_ptr<const CatalogJob> find(const std::string& name);
  /// The job as of the last refresh(); nullptr if it is unknown or removed. Asks PostgreSQL nothing.
  std::shared_ptr<const CatalogJob> known(const std::string& name);

 private:
  Database& database_;
  DatabaseClock& clock_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const CatalogJob>> jobs_;  // guarded by mutex_
  std::int64_t version_ = 0;                                       // guarded by mutex_
  SteadyTime last_asked_{};                                        // of refresh_rarely(); guarded by mutex_
};

}  // namespace takt
