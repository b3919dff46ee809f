#pragma once
#include <functional>
#include <span>
#include <stdexcept>
#include <string>

#include "core/db/database.h"
#include "core/process/version.h"
#include "migrations/embedded.h"

namespace takt {

/// The schema cannot be used by this binary: too new, too old, altered, or not there. The text says what to do.
class SchemaMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What a binary brings.
struct Schema {
  std::span<const Migration> migrations = embedded_migrations();
  std::span<const FunctionFile> functions = embedded_functions();
  std::string_view release = takt_version();  ///< "0.1.0"
};

struct MigrationReport {
  int applied = 0;    ///< numbered migrations
  int functions = 0;  ///< files of functions
  int version = 0;    ///< of the schema, which may be newer than this binary where it says that it may be used
};

struct MigrationSettings {
  /// How long one try waits for a table's lock. Whoever wants that table waits behind it, so it is short.
  Duration lock_timeout = std::chrono::milliseconds(500);
  Duration pause = std::chrono::seconds(1);         ///< between tries
  Duration patience = std::chrono::minutes(5);      ///< for all tries of one migration
  Duration other_migrator = std::chrono::hours(1);  ///< how long another `takt migrate` may take
};

/// Brings the database to `schema`: its missing migrations, and in the last one's transaction the files of functions that differ.
/// Functions of a newer release stay as they are. Many may call it at once: one applies, under an advisory lock held
/// by a transaction, the others wait and find nothing to do. A killed one leaves whole migrations; of one without a transaction
/// its whole statements, which are run again. `progress` is called before each migration, and while one waits for a lock.
/// Throws SchemaMismatch, DatabaseError (naming who held the lock), DatabaseUnavailable.
MigrationReport migrate(Database& database, const std::function<void(const std::string&)>& progress, const Schema& schema = {},
                        const MigrationSettings& settings = {});

/// Throws SchemaMismatch unless the database has every migration of `schema`, and no others but such as say that a binary of this
/// version may go on, and its functions or those of a newer release.
void require_current_schema(Database& database, const Schema& schema = {});

}  // namespace takt
