#include "worker/handlers/sql_handler.h"

#include <cstdlib>

#include "core/db/bound_statement.h"
#include "core/text.h"

namespace takt {

namespace {

constexpr std::size_t kMaxErrorBytes = 1024;

HandlerResult failure(ItemClass item_class, std::string reason, std::string_view error) {
  HandlerResult result;
  result.item_class = item_class;
  result.reason = std::move(reason);
  result.error = printable(error, kMaxErrorBytes);
  return result;
}

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

}  // namespace

SqlHandler::SqlHandler(std::map<std::string, NamedDatabase> databases, Metrics& metrics)
    : configured_(std::move(databases)), metrics_(metrics) {}
SqlHandler::~SqlHandler() = default;

Database& SqlHandler::open(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = opened_.find(name); found != opened_.end()) return *found->second;
  const auto configured = configured_.find(name);
  if (configured == configured_.end()) throw DatabaseUnavailable("database " + name + " is not declared in this worker's takt.yaml");
  const auto& named = configured->second;
  const char* url = std::getenv(named.url_env.c_str());
  if (url == nullptr) throw DatabaseUnavailable("the environment variable " + named.url_env + " is not set in this worker");
  DatabaseSettings settings;
  settings.pool = named.pool;
  settings.statement_timeout = named.statement_timeout;
  settings.role = named.role;
  settings.application_name = "takt sql";
  auto database = std::make_unique<Database>(Secret(url), settings);
  if (!named.superuser && database->exec(std::string("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")).boolean(0, 0)) {
    throw DatabaseUnavailable("the role " + named.role + " is a superuser; use another, or say superuser: true");
  }
  return *(opened_[name] = std::move(database));
}

namespace {

HandlerResult run_one(Database& database, const BoundStatement& bound, const ClaimedItem& item) {
  Params params;
  for (const int number : bound.parameters) {
    switch (number) {
      case 1: params.add(item.payload); break;
      case 2: params.add(item.key.empty() ? std::nullopt : std::optional(item.key)); break;
      case 3: params.add(item.id); break;
      default: params.add(item.attempt); break;
    }
  }
  try {
    return judge_rows(database.exec(bound.sql, params));
  } catch (const DatabaseError& error) {
    return failure(ItemClass::error, "sqlstate_" + error.sqlstate(), error.what());
  } catch (const DatabaseUnavailable& error) {
    return failure(ItemClass::error, "database_unavailable", error.what());
  }
}

}  // namespace

void SqlHandler::run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  const auto& config = std::get<SqlHandlerConfig>(context.job.handler);
  const auto bound = bind_statement(config.statement);
  if (bound.unknown) {  // of a definition that was stored before this was looked at
    results.assign(items.size(), failure(ItemClass::blocked, "sql_parameter",
                                         "the statement has the parameter " + *bound.unknown + "; there are $1 to $4"));
    return;
  }
  Database* database = nullptr;
  std::string fault;
  try {
    database = &open(config.database);
  } catch (const std::exception& error) {
    fault = error.what();
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (context.control.stopped() || std::chrono::steady_clock::now() >= context.deadline) return;
    const auto began = std::chrono::steady_clock::now();
    results[i] = database == nullptr ? failure(ItemClass::error, "database_unavailable", fault) : run_one(*database, bound, items[i]);
    results[i].seconds = seconds_between(began, std::chrono::steady_clock::now());
    metrics_.handler_latency(context.job.name, results[i].seconds);
  }
}

}  // namespace takt
