#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/config/job.h"
#include "core/db/database.h"

namespace takt {

struct CatalogJob {
  std::int64_t id;
  JobDefinition definition;
};

/// The job definitions as PostgreSQL has them. Thread-safe. A run keeps the definition it began with: entries are
/// shared and never changed, only replaced.
class JobCatalog {
 public:
  explicit JobCatalog(Database& database) : database_(database) {}

  /// Reads what changed since the last time; one cheap statement when nothing did.
  void refresh();
  /// nullptr if the job is unknown or removed. A name that is not known is looked up once more in PostgreSQL, at most
  /// once a second over all names, so that forged or mistaken names cost nothing.
  std::shared_ptr<const CatalogJob> find(const std::string& name);
  /// The job as of the last refresh(); nullptr if it is unknown or removed. Asks PostgreSQL nothing.
  std::shared_ptr<const CatalogJob> known(const std::string& name);

 private:
  Database& database_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const CatalogJob>> jobs_;  // guarded by mutex_
  std::int64_t version_ = 0;                                       // guarded by mutex_
  SteadyTime last_miss_{};                                         // guarded by mutex_
};

}  // namespace takt
