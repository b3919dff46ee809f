#include "worker/handlers/sql_target.h"

#include <cstdlib>

#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMaxErrorBytes = 1024;
/// A connection that was not heard of for longer is asked before a statement is trusted to it.
constexpr Duration kFresh = std::chrono::seconds(1);
/// A server that took longer to fail did not refuse: it did not answer.
constexpr Duration kRefusesWithin = std::chrono::seconds(2);
constexpr const char* kReadOnly = "25006";

HandlerResult failure(ItemClass item_class, std::string reason, std::string_view error) {
  HandlerResult result;
  result.item_class = item_class;
  result.reason = std::move(reason);
  result.error = printable(error, kMaxErrorBytes);
  return result;
}

SqlAnswer refused(std::string reason, std::string_view error) {
  return {SqlReach::refused, failure(ItemClass::blocked, std::move(reason), error)};
}

SqlAnswer away(std::string_view error) { return {SqlReach::away, failure(ItemClass::skipped, "database_away", error)}; }

std::optional<ItemClass> class_named(std::string_view word) {
  if (word == "done") return ItemClass::done;
  if (word == "noop") return ItemClass::noop;
  if (word == "skipped") return ItemClass::skipped;
  if (word == "blocked") return ItemClass::blocked;
  if (word == "error") return ItemClass::error;
  if (word == "fatal") return ItemClass::fatal;
  return std::nullopt;
}

/// The first row may say how it went: columns result, error, retry_after (a duration).
HandlerResult judge_rows(const Rows& rows) {
  HandlerResult result;
  result.item_class = ItemClass::done;
  if (rows.empty()) return result;
  for (std::size_t column = 0; column < rows.columns(); ++column) {
    if (rows.is_null(0, column)) continue;
    const auto name = rows.column_name(column);
    const auto value = rows.text(0, column);
    if (name == "result") {
      const auto named = class_named(value);
      if (!named)
        return failure(ItemClass::error, "sql_result",
                       "the column result says \"" + printable(value, 60) + "\"; known are done, noop, skipped, blocked, error, fatal");
      result.item_class = *named;
    } else if (name == "error") {
      result.error = printable(value, kMaxErrorBytes);
    } else if (name == "retry_after") {
      result.retry_after = parse_duration(value);
    }
  }
  if (result.item_class == ItemClass::error || result.item_class == ItemClass::fatal || result.item_class == ItemClass::blocked) {
    result.reason = "sql_" + std::string(to_string(result.item_class));
  }
  return result;
}

Params parameters_of(const BoundStatement& bound, const ClaimedItem& item) {
  Params params;
  for (const int number : bound.parameters) {
    switch (number) {
      case 1: params.add(item.payload); break;
      case 2: params.add(item.key.empty() ? std::nullopt : std::optional(item.key)); break;
      case 3: params.add(item.id); break;
      default: params.add(item.attempt); break;
    }
  }
  return params;
}

std::string quoted_name(std::string_view name) {
  std::string quoted = "\"";
  for (const char c : name) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + '"';
}

/// What DISCARD ALL does, without its plans, which tell nothing; and the role again. As one script it is one round trip, and
/// one transaction of its own: now() is its own time unless the statement before it left one open.
std::string clean_script(const std::string& role) {
  return "CLOSE ALL; UNLISTEN *; DEALLOCATE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES; SET ROLE " +
         quoted_name(role) +
         "; SELECT pg_catalog.now() OPERATOR(pg_catalog.=) pg_catalog.statement_timestamp(), pg_catalog.pg_advisory_unlock_all()";
}

/// SQLSTATEs of a connection that will be refused until somebody changes something: login, database, rights, settings.
bool means_wrong_set_up(const std::string& sqlstate) {
  return sqlstate.starts_with("28") || sqlstate == "3D000" || sqlstate.starts_with("42") || sqlstate.starts_with("22");
}

/// Thrown on the way to a statement; never leaves this file.
struct SuperuserRefused {
  std::string words;
};

/// A superuser, or as good as one, that a session's login is or may become.
struct Superuser {
  std::string login, role;
  bool is_superuser = false, is_current = false, is_login = false;
  static constexpr auto fields() {
    return std::tuple(Field("login", &Superuser::login), Field("role", &Superuser::role), Field("is_superuser", &Superuser::is_superuser),
                      Field("is_current", &Superuser::is_current), Field("is_login", &Superuser::is_login));
  }
};
// What RESET ROLE in a called function leads to is the login, so the login is judged, and all that it may become. Who may
// read or write the server's files, or execute programs there, is as good as a superuser; so is who may grant that.
constexpr Query<NoRequest, Superuser> kSuperuser{"takt_superuser", R"sql(
  SELECT session_user::text AS login, r.rolname::text AS role, r.rolsuper AS is_superuser, r.rolname = current_user AS is_current,
         r.rolname = session_user AS is_login
    FROM pg_catalog.pg_roles r
   WHERE pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER')
     AND (r.rolsuper OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
          OR r.rolcreaterole AND pg_catalog.current_setting('server_version_num')::integer < 160000)
   ORDER BY r.rolname = current_user DESC, r.rolname = session_user DESC, r.rolname
   LIMIT 1
)sql"};

}  // namespace

std::optional<std::string> superuser_fault(Session& session, const NamedDatabase& named) {
  // Unprepared: DISCARD ALL, which cleans the session, would take it away.
  const auto found = read(kSuperuser, session.exec(std::string(kSuperuser.sql), {}));
  if (found.empty() || named.superuser) return std::nullopt;
  const std::string login = printable(found.front().login, 63), role = printable(found.front().role, 63);
  const std::string what = found.front().is_superuser ? " is a superuser" : " can become a superuser";
  if (found.front().is_current) return "the role " + role + what + "; use another, or say superuser: true";
  const std::string way_out = "; log in as a role that may only SET ROLE " + named.role + ", or say superuser: true";
  if (found.front().is_login) return "its login " + login + what + way_out;
  return "its login " + login + " may SET ROLE " + role + ", which" + what + way_out;
}

SqlTarget::SqlTarget(std::string name, NamedDatabase named, const Clock& clock)
    : name_(std::move(name)), named_(std::move(named)), clean_script_(clean_script(named_.role)), clock_(clock) {}

DatabaseSettings SqlTarget::settings() const {
  DatabaseSettings settings;
  settings.pool = named_.pool;
  settings.statement_timeout = named_.statement_timeout;
  settings.role = named_.role;
  settings.application_name = "takt sql";
  settings.takts_tables = false;
  return settings;
}

/// Null if the URL is not known, which `fault` then says.
Database* SqlTarget::open(std::string& fault) {
  const std::scoped_lock lock(mutex_);
  if (database_) return database_.get();
  const char* url = std::getenv(named_.url_env.c_str());
  if (url == nullptr) {
    fault = "the environment variable " + named_.url_env + " is not set in this worker";
    return nullptr;
  }
  return (database_ = std::make_unique<Database>(Secret(url), settings())).get();
}

SqlAnswer SqlTarget::not_opened(const DatabaseUnavailable& error, Duration took) const {
  auto sqlstate = error.sqlstate();
  const char* url = std::getenv(named_.url_env.c_str());
  if (sqlstate.empty() && took < kRefusesWithin && url != nullptr) {
    sqlstate = connection_refusal(Secret(url), settings(), kRefusesWithin);
  }
  if (means_wrong_set_up(sqlstate)) return refused("sql_connect_" + sqlstate, error.what());
  log_warn("database away", {{"database", name_}, {"error", error.what()}});
  return away(error.what());
}

bool SqlTarget::clean(DatabaseConnection& connection) const {
  try {
    const bool closed = connection.session().script(clean_script_).boolean(0, 0);
    connection.spoil(!closed);
    return closed;
  } catch (const std::exception& error) {  // it is closed, which cleans as well
    log_debug("session not cleaned", {{"database", name_}, {"error", error.what()}});
    return true;
  }
}

void SqlTarget::on(DatabaseConnection& connection, const BoundStatement& bound, const Params& params, std::optional<SqlAnswer>& answer) {
  if (clock_.steady() - kFresh > answered_.load()) {
    if (auto fault = superuser_fault(connection.session(), named_)) throw SuperuserRefused{*std::move(fault)};
  }
  connection.spoil(true);  // until it is clean
  try {
    answer = SqlAnswer{SqlReach::here, judge_rows(connection.session().exec(bound.sql, params))};
  } catch (const DatabaseError& error) {
    answer = SqlAnswer{SqlReach::here, failure(ItemClass::error, "sqlstate_" + error.sqlstate(), error.what())};
  } catch (const DatabaseUnavailable& error) {
    if (error.sqlstate() == kReadOnly) {  // a standby, or a server that was made one
      answer = away(error.what());
    } else {
      answer = SqlAnswer{
          SqlReach::here,
          failure(ItemClass::error, "connection_lost",
                  std::string("the connection broke after the statement was sent, so what came of it is not known: ") + error.what())};
      throw;
    }
  }
  answered_ = clock_.steady();
  if (!clean(connection)) {
    answer = SqlAnswer{SqlReach::here, failure(ItemClass::blocked, "sql_transaction",
                                               "the statement begins a transaction and leaves it open, so nothing of it was kept")};
  }
}

SqlAnswer SqlTarget::execute(const BoundStatement& bound, const ClaimedItem& item) {
  std::string fault;
  Database* database = open(fault);
  if (database == nullptr) return refused("sql_url_missing", fault);
  const auto params = parameters_of(bound, item);
  std::optional<SqlAnswer> answer;
  for (bool again = false;; again = true) {
    const auto began = std::chrono::steady_clock::now();
    bool opened = false;
    try {
      database->with_connection([&](DatabaseConnection& connection) {
        opened = true;
        on(connection, bound, params, answer);
      });
      return *answer;
    } catch (const SuperuserRefused& refusal) {
      return refused("sql_superuser", refusal.words);
    } catch (const DatabaseBusy&) {
      return {SqlReach::busy, {}};
    } catch (const DatabaseError& error) {  // of SET ROLE: statements' own are answers
      return refused("sql_role", "SET ROLE " + named_.role + ": " + error.what());
    } catch (const DatabaseUnavailable& error) {
      if (answer) return *answer;
      if (opened && !again) continue;  // one that was kept, and that the server has closed since
      return not_opened(error, std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now() - began));
    }
  }
}

}  // namespace takt
