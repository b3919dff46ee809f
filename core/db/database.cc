#include "core/db/database.h"

#include <thread>

#include "core/db/deadline.h"
#include "core/db/passing.h"
#include "core/db/retry_end.h"
#include "core/observe/log.h"
#include "core/observe/log_throttle.h"
#include "core/process/random.h"

namespace takt {

namespace {

/// Full jitter over a doubling pause, so that transactions that collided do not collide again.
void pause_before_retry(int attempt) {
  static SeededRandom random(random_seed());
  const double most_ms = 5.0 * static_cast<double>(1 << std::min(attempt, 6));
  std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(most_ms * random.uniform()));
}

constexpr std::chrono::seconds kMisfitFor(5);

/// Undefined, altered or forbidden (class 42), a plan whose columns are others (0A000), a schema that is gone, and a prepared
/// statement that is not there.
bool means_other_schema(const std::string& sqlstate) {
  return sqlstate.starts_with("42") || sqlstate == "0A000" || sqlstate == "3F000" || sqlstate == "26000";
}

}  // namespace

Database::Database(Secret url, DatabaseSettings settings) : url_(std::move(url)), settings_(std::move(settings)) {}
Database::~Database() = default;

std::unique_ptr<DatabaseConnection> Database::take() {
  const auto deadline = std::chrono::steady_clock::now() + settings_.connect_timeout;
  std::unique_lock lock(mutex_);
  bool may_open = true;
  std::exception_ptr refused;
  while (true) {
    const bool got =
        freed_.wait_until(lock, deadline, [&] { return !idle_.empty() || (open_ < settings_.pool && (may_open || open_ == 0)); });
    if (!got && refused) std::rethrow_exception(refused);
    if (!got) throw DatabaseBusy("database: all " + std::to_string(settings_.pool) + " connections of the pool are busy");
    if (!idle_.empty()) {
      auto connection = std::move(idle_.back());
      idle_.pop_back();
      return connection;
    }
    if (!healthy_ && answer_waits_are_limited()) throw DatabaseUnavailable("database: it did not answer, and this process is ending");
    ++open_;
    lock.unlock();
    try {
      return connect_database(url_, settings_);
    } catch (...) {
      // The server has no more room, or this process no descriptor: those that are open go on serving.
      refused = std::current_exception();
    }
    lock.lock();
    --open_;
    freed_.notify_one();
    if (open_ == 0) std::rethrow_exception(refused);
    may_open = false;
  }
}

void Database::give_back(std::unique_ptr<DatabaseConnection> connection) {
  {
    const std::scoped_lock lock(mutex_);
    if (connection && connection->spoiled()) {
      --open_;
    } else if (connection && connection->usable()) {
      idle_.push_back(std::move(connection));
    } else {
      open_ -= 1 + static_cast<int>(idle_.size());
      idle_.clear();  // what broke one has most likely broken the idle ones too
    }
  }
  freed_.notify_all();  // a broken one makes room for more than one
}

bool Database::usable() const { return healthy_ && std::chrono::steady_clock::now() >= misfit_until_.load(); }

void Database::schema_differs() { misfit_until_ = std::chrono::steady_clock::now() + kMisfitFor; }

void Database::with_connection(const std::function<void(DatabaseConnection&)>& body) {
  std::unique_ptr<DatabaseConnection> connection;
  try {
    connection = take();
    body(*connection);
    healthy_ = true;
    give_back(std::move(connection));
  } catch (const DatabaseUnavailable&) {
    healthy_ = false;
    if (connection) give_back(nullptr);
    throw;
  } catch (...) {
    if (connection) give_back(std::move(connection));
    throw;
  }
}

Rows Database::exec(const Statement& statement, const Params& params) {
  std::optional<Rows> rows;
  ++round_trips_;
  with_connection([&](DatabaseConnection& connection) {
    try {
      rows = connection.session().exec(statement, params);
    } catch (const DatabaseError& error) {
      if (!means_other_schema(error.sqlstate())) throw;
      schema_differs();
      const char* what =
          error.sqlstate() == "42501" ? "database: this role may not do that (" : "database: its schema is not this version's (";
      throw SchemaChanged(what + std::string(statement.name) + "): " + error.what(), error.sqlstate());
    }
  });
  return *rows;
}

Rows Database::exec(const std::string& sql, const Params& params) {
  std::optional<Rows> rows;
  ++round_trips_;
  with_connection([&](DatabaseConnection& connection) { rows = connection.session().exec(sql, params); });
  return *rows;
}

/// Where they cannot be made, the statement that is tried again says what it lacks, and the log why.
void Database::make_partitions() {
  static const SystemClock clock;
  static LogThrottle lines(clock, 2);  // of all pools: each statement that needs a partition comes here
  constexpr std::size_t kMade = 0, kNotMade = 1;
  try {
    exec(std::string("SELECT takt.ensure_partitions()"));
  } catch (const DatabaseError& error) {
    if (const auto times = lines.due(kNotMade); times > 0) log_error("partitions not made", {{"times", times}, {"error", error.what()}});
    return;
  }
  if (const auto times = lines.due(kMade); times > 0)
    log_warn("partitions missing", {{"times", times}, {"then", "made now; a leading dispatcher makes them days before"}});
}

template <typename Body>
auto Database::retrying(int tries, Body body, bool divisible) {
  bool partitions_made = false;
  for (int attempt = 1;;) {
    try {
      return body();
    } catch (const DatabaseError& error) {
      if (error.sqlstate() == kNoPartition && !partitions_made) {
        partitions_made = true;
        make_partitions();
        continue;
      }
      if (!error.retryable() || attempt >= tries || RetryEnd::passed() || (divisible && too_large_together(error))) throw;
      pause_before_retry(attempt++);
    }
  }
}

void Database::transaction(const std::function<void(Session&)>& body, int tries) {
  retrying(tries, [&] {
    round_trips_ += 2;
    with_connection([&](DatabaseConnection& connection) { connection.transaction(body); });
  });
}

Rows Database::exec_retrying(const Statement& statement, const Params& params, int tries) {
  return retrying(tries, [&] { return exec(statement, params); });
}

Rows Database::exec_divisible(const Statement& statement, const Params& params) {
  return retrying(
      kTries, [&] { return exec(statement, params); }, true);
}

std::unique_ptr<DatabaseConnection> Database::dedicated() const { return connect_database(url_, settings_); }

}  // namespace takt
