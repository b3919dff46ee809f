#pragma once
#include <functional>
#include <stdexcept>
#include <string>

#include "core/db/database.h"

namespace takt {

/// The schema cannot be used by this binary: newer, altered, or not there. The text says what to do.
class SchemaMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct MigrationReport {
  int applied = 0;
  int version = 0;
};

/// Brings the schema `takt` to this binary's version. Many may call it at once: one applies, under an advisory lock
/// held by each migration's transaction, the others wait and find nothing to do. A killed one leaves whole migrations.
/// `progress` is called before each migration. Throws SchemaMismatch, DatabaseError, DatabaseUnavailable.
MigrationReport migrate(Database& database, const std::function<void(const std::string&)>& progress);

/// Throws SchemaMismatch unless the schema is exactly this binary's.
void require_current_schema(Database& database);

}  // namespace takt
