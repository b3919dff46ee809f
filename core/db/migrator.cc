#include "core/db/migrator.h"

#include <openssl/evp.h>

#include <array>
#include <map>

#include "core/text.h"
#include "migrations/embedded.h"

namespace takt {

namespace {

// The same in every process and no other lock of Takt: "takt" in ASCII and two, where apply has one. What applications lock
// until their transaction ends (takt.notifier_lock) is far above.
constexpr auto kLock = "SELECT pg_advisory_xact_lock(1952541558)";

std::string checksum(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &length, EVP_sha256(), nullptr);
  return to_hex({reinterpret_cast<const char*>(digest.data()), length});
}

std::map<int, std::string> applied_migrations(Session& on) {
  std::map<int, std::string> applied;
  if (on.exec(std::string("SELECT to_regclass('takt.schema_migrations') IS NOT NULL"), {}).boolean(0, 0)) {
    const auto rows = on.exec(std::string("SELECT version, checksum FROM takt.schema_migrations ORDER BY version"), {});
    for (std::size_t i = 0; i < rows.size(); ++i) applied[static_cast<int>(rows.integer(i, 0))] = rows.text(i, 1);
  }
  return applied;
}

/// Refuses a schema that this binary must not touch; returns the versions still missing.
int check_applied(const std::map<int, std::string>& applied) {
  int missing = 0;
  std::map<int, const Migration*> known;
  for (const auto& migration : embedded_migrations()) {
    known[migration.version] = &migration;
    const auto found = applied.find(migration.version);
    if (found == applied.end()) {
      ++missing;
    } else if (found->second != checksum(migration.sql)) {
      throw SchemaMismatch("migration " + std::string(migration.name) +
                           " differs from what was applied to this database; use the binary that made this schema, or a newer one");
    }
  }
  for (const auto& [version, sum] : applied) {
    if (!known.contains(version)) {
      throw SchemaMismatch("the database's schema is at version " + std::to_string(applied.rbegin()->first) + ", newer than this binary (" +
                           std::to_string(known.rbegin()->first) + "); deploy a newer takt");
    }
  }
  return missing;
}

}  // namespace

MigrationReport migrate(Database& database, const std::function<void(const std::string&)>& progress) {
  MigrationReport report;
  database.transaction([](Session& on) {
    on.script(kLock);
    on.script(
        "SET LOCAL client_min_messages = warning;"
        "CREATE SCHEMA IF NOT EXISTS takt;"
        "CREATE TABLE IF NOT EXISTS takt.schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
        " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())");
  });
  for (const auto& migration : embedded_migrations()) {
    report.version = migration.version;
    database.transaction([&](Session& on) {
      on.script("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0");
      on.script(kLock);
      const auto applied = applied_migrations(on);
      check_applied(applied);
      if (applied.contains(migration.version)) return;
      progress(std::string(migration.name));
      on.script(std::string(migration.sql));
      on.exec(std::string("INSERT INTO takt.schema_migrations (version, name, checksum) VALUES ($1, $2, $3)"),
              Params::of(migration.version, migration.name, checksum(migration.sql)));
      ++report.applied;
    });
  }
  return report;
}

void require_current_schema(Database& database) {
  database.with_connection([](DatabaseConnection& connection) {
    const auto applied = applied_migrations(connection.session());
    if (applied.empty()) throw SchemaMismatch("the database has no takt schema; run \"takt migrate\"");
    if (check_applied(applied) > 0) throw SchemaMismatch("the database's schema is older than this binary; run \"takt migrate\"");
  });
}

}  // namespace takt
