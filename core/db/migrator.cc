#include "core/db/migrator.h"

#include <openssl/evp.h>

#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <thread>

#include "core/db/query.h"
#include "core/text/text.h"

namespace takt {

namespace {

// The same in every process and no other lock of Takt: "takt" in ASCII and two, where apply has one. What applications lock
// until their transaction ends (takt.notifier_lock) is far above.
constexpr auto kLock = "SELECT pg_advisory_xact_lock(1952541558)";

constexpr auto kDenyByDefault = R"sql(
  DO $$
  DECLARE new_one regprocedure;
  BEGIN
    FOR new_one IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'takt'::regnamespace AND proacl IS NULL LOOP
      EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', new_one);
    END LOOP;
  END $$)sql";

struct Applied {
  std::string checksum;
  int oldest = 0;  // the oldest version whose binaries may go on with it
};

std::string checksum(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &length, EVP_sha256(), nullptr);
  return to_hex({reinterpret_cast<const char*>(digest.data()), length});
}

/// What follows "-- `name`: " on one of the comment lines at the top; empty if none does.
std::string_view header(std::string_view sql, std::string_view name) {
  const std::string wanted = "-- " + std::string(name) + ": ";
  while (sql.starts_with("--")) {
    const auto line = sql.substr(0, sql.find('\n'));
    if (line.starts_with(wanted)) return line.substr(wanted.size());
    sql.remove_prefix(std::min(sql.size(), line.size() + 1));
  }
  return {};
}

int oldest_of(const Migration& migration) {
  const auto text = header(migration.sql, "oldest");
  int oldest = migration.version;
  std::from_chars(text.data(), text.data() + text.size(), oldest);
  return oldest;
}

/// Its statements: each ends with a semicolon at the end of a line.
std::vector<std::string> statements_of(std::string_view sql) {
  std::vector<std::string> statements;
  while (!sql.empty()) {
    const auto end = sql.find(";\n");
    auto statement = sql.substr(0, end);
    sql.remove_prefix(end == std::string_view::npos ? sql.size() : end + 2);
    while (statement.starts_with("--") || statement.starts_with("\n")) {
      const auto line = statement.find('\n');
      statement.remove_prefix(line == std::string_view::npos ? statement.size() : line + 1);
    }
    if (!statement.empty()) statements.emplace_back(statement);
  }
  return statements;
}

constexpr Query<One<std::string>, Answer> kHasTable{"has_table", "SELECT to_regclass('takt.' || $1::text) IS NOT NULL AS is_so"};

bool has_table(Session& on, const char* name) { return query(on, kHasTable, {name}).at(0).is_so; }

struct AppliedRow {
  int version = 0;
  std::string checksum;
  int oldest = 0;
  static constexpr auto fields() {
    return std::tuple(Field("version", &AppliedRow::version), Field("checksum", &AppliedRow::checksum),
                      Field("oldest", &AppliedRow::oldest));
  }
};
constexpr Query<NoRequest, AppliedRow> kApplied{"migrations_applied",
                                                "SELECT version, checksum, oldest FROM takt.schema_migrations ORDER BY version"};
struct FunctionsRow {
  std::string name, checksum, release;
  static constexpr auto fields() {
    return std::tuple(Field("name", &FunctionsRow::name), Field("checksum", &FunctionsRow::checksum),
                      Field("release", &FunctionsRow::release));
  }
};
constexpr Query<NoRequest, FunctionsRow> kFunctions{"functions_applied", "SELECT name, checksum, release FROM takt.schema_functions"};

std::map<int, Applied> applied_migrations(Session& on) {
  std::map<int, Applied> applied;
  if (has_table(on, "schema_migrations")) {
    for (auto& row : query(on, kApplied)) applied[row.version] = {std::move(row.checksum), row.oldest};
  }
  return applied;
}

/// "0.10.1" as numbers, which compare; what is none counts as 0.
std::array<int, 3> release_numbers(std::string_view release) {
  std::array<int, 3> numbers{};
  const auto words = split(release, '.');
  for (std::size_t i = 0; i < std::min(words.size(), numbers.size()); ++i)
    std::from_chars(words[i].data(), words[i].data() + words[i].size(), numbers[i]);
  return numbers;
}

/// The files of `schema` that the database has not, or otherwise; none where a newer release made its functions, which serve this
/// one as well as its migrations do.
std::vector<const FunctionFile*> differing_functions(Session& on, const Schema& schema) {
  std::map<std::string, std::string> recorded;
  if (has_table(on, "schema_functions")) {
    for (auto& row : query(on, kFunctions)) {
      if (release_numbers(row.release) > release_numbers(schema.release)) return {};
      recorded[std::move(row.name)] = std::move(row.checksum);
    }
  }
  std::vector<const FunctionFile*> differing;
  for (const auto& file : schema.functions) {
    const auto found = recorded.find(std::string(file.name));
    if (found == recorded.end() || found->second != checksum(file.sql)) differing.push_back(&file);
  }
  return differing;
}

/// Refuses a schema that this binary must not touch; returns how many of `migrations` are still missing.
int check_applied(const std::map<int, Applied>& applied, std::span<const Migration> migrations) {
  int missing = 0;
  std::map<int, const Migration*> known;
  for (const auto& migration : migrations) {
    known[migration.version] = &migration;
    const auto found = applied.find(migration.version);
    if (found == applied.end()) {
      ++missing;
    } else if (found->second.checksum != checksum(migration.sql)) {
      throw SchemaMismatch("migration " + std::string(migration.name) +
                           " differs from what was applied to this database; use the binary that made this schema, or a newer one");
    }
  }
  const int mine = known.empty() ? 0 : known.rbegin()->first;
  for (const auto& [version, row] : applied) {
    if (!known.contains(version) && row.oldest > mine) {
      throw SchemaMismatch("the database's schema is at version " + std::to_string(applied.rbegin()->first) + ", newer than this binary (" +
                           std::to_string(mine) + "), and for binaries from version " + std::to_string(row.oldest) +
                           " on; deploy a newer takt");
    }
  }
  return missing;
}

struct LockHolder {
  int pid = 0;
  std::string table, application, state, since;
  static constexpr auto fields() {
    return std::tuple(Field("pid", &LockHolder::pid), Field("table", &LockHolder::table), Field("application", &LockHolder::application),
                      Field("state", &LockHolder::state), Field("for", &LockHolder::since));
  }
};
constexpr Query<NoRequest, LockHolder> kLockHolders{"lock_holders", R"sql(
  SELECT DISTINCT ON (l.pid) l.pid, c.relname::text AS table, a.application_name AS application, a.state,
         date_trunc('second', now() - a.xact_start)::text AS for
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_stat_activity a ON a.pid = l.pid
   WHERE n.nspname = 'takt' AND l.granted AND l.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')
     AND a.xact_start < now() - interval '1 s'
   ORDER BY l.pid, c.relname LIMIT 5
)sql"};

/// Who has what a migration waits for, as far as this role may see: sessions whose transaction is older than a second.
std::string lock_holders(Database& database) {
  std::string text;
  for (const auto& one : query(database, kLockHolders)) {
    text += (text.empty() ? "" : "; ") + std::string("pid ") + std::to_string(one.pid) + " (" + printable(one.application, 60) + ", " +
            one.state + " for " + one.since + ") has takt." + one.table;
  }
  return text.empty() ? "nobody who could be seen holds it now" : text;
}

class Migrator {
 public:
  Migrator(Database& database, const std::function<void(const std::string&)>& progress, const Schema& schema,
           const MigrationSettings& settings)
      : database_(database), progress_(progress), schema_(schema), settings_(settings) {}

  MigrationReport run() {
    in_turn([](Session& on) {
      on.script(
          "SET LOCAL client_min_messages = warning;"
          "CREATE SCHEMA IF NOT EXISTS takt;"
          "CREATE TABLE IF NOT EXISTS takt.schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
          " checksum text NOT NULL, oldest integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());"
          "CREATE TABLE IF NOT EXISTS takt.schema_functions (name text PRIMARY KEY, checksum text NOT NULL,"
          " release text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())");
    });
    for (const auto& migration : schema_.migrations) {
      // What is done outside a transaction is recorded for itself: it would not be undone with the functions.
      const bool with_functions = &migration == &schema_.migrations.back() && header(migration.sql, "transaction") != "none";
      trying("migration " + std::string(migration.name), [&](Session& on) {
        apply(migration, on);
        if (with_functions) apply_functions(on);
      });
    }
    trying("functions", [&](Session& on) { apply_functions(on); });
    in_turn([&](Session& on) {
      const auto applied = applied_migrations(on);
      check_applied(applied, schema_.migrations);
      if (!applied.empty()) report_.version = applied.rbegin()->first;
    });
    return report_;
  }

 private:
  /// A transaction that is the only migrator's. Nothing but this lock is waited for longer than lock_timeout.
  void in_turn(const std::function<void(Session&)>& body) {
    database_.transaction(
        [&](Session& on) {
          on.script("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = " +
                    std::to_string(settings_.other_migrator.count()));
          on.limit_statements(settings_.other_migrator + settings_.patience);
          on.script(kLock);
          on.limit_statements(settings_.patience);
          on.script("SET LOCAL lock_timeout = " + std::to_string(settings_.lock_timeout.count()));
          body(on);
        },
        1);
  }

  /// In its turn, again and again while others have the locks that it needs.
  void trying(const std::string& name, const std::function<void(Session&)>& body) {
    std::optional<SteadyTime> until;  // from the first lock that was not to be had: what took long is no waiting
    const auto before = report_;
    while (true) {
      try {
        report_ = before;
        return in_turn(body);
      } catch (const DatabaseError& error) {
        if (!error.retryable()) throw;
        const std::string who = lock_holders(database_);
        if (!until) until = std::chrono::steady_clock::now() + settings_.patience;
        if (std::chrono::steady_clock::now() > *until) {
          throw DatabaseError(name + " got no lock on a table for " + format_duration(settings_.patience) + ": " + who +
                                  ". End that transaction and run takt migrate again; nothing of it was applied",
                              error.sqlstate());
        }
        progress_(name + " waits for a lock: " + who);
        std::this_thread::sleep_for(settings_.pause);
      }
    }
  }

  void apply(const Migration& migration, Session& on) {
    const auto applied = applied_migrations(on);
    check_applied(applied, schema_.migrations);
    if (applied.contains(migration.version)) return;
    progress_("applying " + std::string(migration.name));
    on.limit_statements(Duration(0));  // on a large table it takes as long as it takes
    if (header(migration.sql, "transaction") == "none") {
      // The lock stays with this transaction. An index build waits for whoever has a snapshot, as this has until the next
      // statement replaces the last one's portal.
      on.script("SELECT 1");
      const auto beside = database_.dedicated();
      if (!database_.transaction_pooler()) {
        beside->session().script("SET statement_timeout = 0; SET lock_timeout = " + std::to_string(settings_.patience.count()));
      }
      for (const auto& statement : statements_of(migration.sql)) beside->outside_transaction(statement);
    } else {
      on.script(std::string(migration.sql));
    }
    on.limit_statements(settings_.patience);
    on.exec(std::string("INSERT INTO takt.schema_migrations (version, name, checksum, oldest) VALUES ($1, $2, $3, $4)"),
            Params::of(migration.version, migration.name, checksum(migration.sql), oldest_of(migration)));
    ++report_.applied;
  }

  void apply_functions(Session& on) {
    const auto differing = differing_functions(on, schema_);
    for (const auto* file : differing) {
      progress_("applying functions/" + std::string(file->name));
      on.script("SET LOCAL client_min_messages = warning;" + std::string(file->sql));
      on.exec(std::string("INSERT INTO takt.schema_functions (name, checksum, release) VALUES ($1, $2, $3)"
                          " ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, release = excluded.release, applied_at = now()"),
              Params::of(std::string(file->name), checksum(file->sql), std::string(schema_.release)));
      ++report_.functions;
    }
    // Deny by default: a role needs an explicit GRANT EXECUTE to enqueue (docs/operating.md lists the grants). Of functions that nobody
    // has granted or revoked yet, so of new ones: what an operator granted stays.
    if (!differing.empty()) on.script(kDenyByDefault);
  }

  Database& database_;
  const std::function<void(const std::string&)>& progress_;
  const Schema& schema_;
  const MigrationSettings& settings_;
  MigrationReport report_;
};

}  // namespace

MigrationReport migrate(Database& database, const std::function<void(const std::string&)>& progress, const Schema& schema,
                        const MigrationSettings& settings) {
  return Migrator(database, progress, schema, settings).run();
}

void require_current_schema(Database& database, const Schema& schema) {
  database.with_connection([&](DatabaseConnection& connection) {
    const auto applied = applied_migrations(connection.session());
    if (applied.empty()) throw SchemaMismatch("the database has no takt schema; run \"takt migrate\"");
    if (check_applied(applied, schema.migrations) > 0)
      throw SchemaMismatch("the database's schema is older than this binary; run \"takt migrate\"");
    if (const auto differing = differing_functions(connection.session(), schema); !differing.empty())
      throw SchemaMismatch("the database's functions (" + std::string(differing.front()->name) +
                           ") are not those of this binary; run \"takt migrate\" of the one that is to be used");
  });
}

}  // namespace takt
