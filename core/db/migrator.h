#pragma once
#include <functional>
#include <span>
#include <stdexcept>
#include <string>

#include "core/db/database.h"
#include "migrations/embedded.h"

namespace takt {

/// The schema cannot be used by this binary: too new, too old, altered, or not there. The text says what to do.
class SchemaMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct MigrationReport {
  int applied = 0;
  int version = 0;  ///< of the schema, which may be newer than this binary where it says that it may be used
};

struct MigrationSettings {
  /// How long one try waits for a table's lock. Whoever wants that table waits behind it, so it is short.
  Duration lock_timeout = std::chrono::milliseconds(500);
  Duration pause = std::chrono::seconds(1);         ///< between tries
  Duration patience = std::chrono::minutes(5);      ///< for all tries of one migration
  Duration other_migrator = std::chrono::hours(1);  ///< how long another `takt migrate` may take
};

/// Brings the schema `takt` to the version of `migrations`. Many may call it at once: one applies, under an advisory lock held
/// by a transaction, the others wait and find nothing to do. A killed one leaves whole migrations; of one without a transaction
/// its whole statements, which are run again. `progress` is called before each migration, and while one waits for a lock.
/// Throws SchemaMismatch, DatabaseError (naming who held the lock), DatabaseUnavailable.
MigrationReport migrate(Database& database, const std::function<void(const std::string&)>& progress,
                        std::span<const Migration> migrations = embedded_migrations(), const MigrationSettings& settings = {});

/// Throws SchemaMismatch unless the schema has every one of `migrations`, and no others but such as say that a binary of this
/// version may go on.
void require_current_schema(Database& database, std::span<const Migration> migrations = embedded_migrations());

}  // namespace takt
