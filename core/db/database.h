#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/secret.h"
#include "core/time/time.h"

// libpqxx (6.4 and 7.10 differ) is included by connection.cc alone; the rest of Takt sees these types.
namespace takt {

/// PostgreSQL cannot be used now: not reachable, shutting down, out of connections, read-only. A retry may help.
class DatabaseUnavailable : public std::runtime_error {
 public:
  explicit DatabaseUnavailable(const std::string& message, std::string sqlstate = "");
  /// The server's own word for it; empty if it sent none: what came of a statement is then not known.
  [[nodiscard]] const std::string& sqlstate() const { return sqlstate_; }

 private:
  std::string sqlstate_;
};

/// Every connection of the pool is in use for longer than connect_timeout. Says nothing about PostgreSQL.
class DatabaseBusy : public DatabaseUnavailable {
 public:
  using DatabaseUnavailable::DatabaseUnavailable;
};

/// One of Takt's own statements does not fit the schema: another version's migration changed it, or its role may not do what
/// it could. For this process PostgreSQL is away until it fits again; connections, with what was prepared on them, are closed.
class SchemaChanged : public DatabaseUnavailable {
 public:
  using DatabaseUnavailable::DatabaseUnavailable;
};

/// PostgreSQL refused a statement. `retryable`: serialization failure, deadlock, lock or statement timeout.
class DatabaseError : public std::runtime_error {
 public:
  DatabaseError(const std::string& message, std::string sqlstate);
  [[nodiscard]] const std::string& sqlstate() const { return sqlstate_; }
  [[nodiscard]] bool retryable() const;
  /// SQLSTATE class 53: the server lacks memory, locks or connections, whoever took them; no statement is to blame for that.
  [[nodiscard]] bool short_of_resources() const;

 private:
  std::string sqlstate_;
};

/// Whether PostgreSQL could not do so much at once: over 1 GB of text, of memory, or the time for a statement.
bool too_large_together(const DatabaseError& error);

/// A statement and the name it is prepared under, once a connection.
struct Statement {
  const char* name;
  const char* sql;
};

/// Positional parameters in PostgreSQL's text form.
class Params {
 public:
  template <typename... Args>
  static Params of(const Args&... args) {
    Params params;
    (params.add(args), ...);
    return params;
  }
  Params& add(std::nullopt_t) {
    values_.emplace_back(std::nullopt);
    return *this;
  }
  Params& add(std::string_view text) {
    values_.emplace_back(std::string(text));
    return *this;
  }
  Params& add(const char* text) { return add(std::string_view(text)); }
  Params& add(const std::string& text) { return add(std::string_view(text)); }
  Params& add(bool value) { return add(std::string_view(value ? "t" : "f")); }
  Params& add(int value) { return add(std::string_view(std::to_string(value))); }
  Params& add(std::int64_t value) { return add(std::string_view(std::to_string(value))); }
  Params& add(double value);
  Params& add(Timestamp time);
  /// As milliseconds; the statement says `$n * interval '1 ms'`.
  Params& add(Duration duration) { return add(static_cast<std::int64_t>(duration.count())); }
  template <typename T>
  Params& add(const std::optional<T>& value) {
    if (value) return add(*value);
    return add(std::nullopt);
  }
  /// Arrays, as PostgreSQL's array literal.
  Params& add(const std::vector<std::int64_t>& values);
  Params& add(const std::vector<double>& values);
  Params& add(const std::vector<std::string>& values);
  Params& add(const std::vector<std::optional<std::string>>& values);

  Params& append(Params&& more) {
    for (auto& value : more.values_) values_.push_back(std::move(value));
    return *this;
  }

  [[nodiscard]] const std::vector<std::optional<std::string>>& values() const { return values_; }

 private:
  std::vector<std::optional<std::string>> values_;
};

/// What a column holds: an integer of any width, text of any kind.
enum class ColumnKind { boolean, integer, real, text };

/// As PostgreSQL writes them; nothing is 0.
std::int64_t integer_of(std::string_view text);
double real_of(std::string_view text);

/// One result, held whole in memory (every statement of Takt bounds its rows).
class Rows {
 public:
  struct Impl;
  explicit Rows(std::shared_ptr<const Impl> impl);
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] bool empty() const { return size() == 0; }
  [[nodiscard]] std::size_t affected() const;
  [[nodiscard]] std::size_t columns() const;
  [[nodiscard]] std::string column_name(std::size_t column) const;
  [[nodiscard]] bool column_is(std::size_t column, const char* name, ColumnKind kind) const;

  /// The first cells of a row, into the room that is given: views into the result, and nothing for NULL. Reading them one by one
  /// costs several times as much.
  void cells(std::size_t row, std::span<std::optional<std::string_view>> room) const;

  [[nodiscard]] bool is_null(std::size_t row, std::size_t column) const;
  /// View into the result; empty for NULL.
  [[nodiscard]] std::string_view text(std::size_t row, std::size_t column) const;
  [[nodiscard]] std::int64_t integer(std::size_t row, std::size_t column) const;
  [[nodiscard]] bool boolean(std::size_t row, std::size_t column) const;

 private:
  std::shared_ptr<const Impl> impl_;
};

/// Something statements can be executed on: a connection (each statement its own transaction) or a transaction.
/// Not thread-safe. Every call ends: the server ends a statement by its statement_timeout; where it says nothing for
/// answer_grace more, its connection is given up (DatabaseUnavailable; what came of the statement is not known).
class Session {
 public:
  virtual ~Session() = default;
  /// Prepared at first use on each connection, unless behind a transaction-pooling proxy.
  virtual Rows exec(const Statement& statement, const Params& params) = 0;
  /// Unprepared; one statement.
  virtual Rows exec(const std::string& sql, const Params& params) = 0;
  /// Has the server judge one statement, and executes nothing. Throws as exec() does. Within a transaction.
  virtual void judge(const std::string& sql) = 0;
  /// Several statements, no parameters. All together have the time of one.
  virtual Rows script(const std::string& sql) = 0;
  /// Within a transaction, for what follows in it: another time than statement_timeout. Zero: any, with no deadline either.
  virtual void limit_statements(Duration limit) = 0;
};

struct DatabaseSettings {
  int pool = 4;  ///< connections at most
  Duration connect_timeout = std::chrono::seconds(5);
  Duration statement_timeout = std::chrono::seconds(30);  ///< zero: none, and no end to the wait for an answer
  /// After statement_timeout: so long an answer may take to come, and nothing more may move before the connection is given up.
  Duration answer_grace = std::chrono::seconds(5);
  Duration lock_timeout = std::chrono::seconds(5);
  bool transaction_pooler = false;  ///< behind pgbouncer in transaction mode: nothing prepared, timeouts set in each transaction
  std::string role;                 ///< SET ROLE after connecting; empty: none
  std::string application_name = "takt";
  /// The time zone, and the planner's settings, that Takt's own statements and tables count on. False in databases of others:
  /// what they and their roles say stays.
  bool takts_tables = true;
};

/// One connection. Not thread-safe: owned by whoever holds its lease.
class DatabaseConnection {
 public:
  virtual ~DatabaseConnection() = default;
  /// Autocommit: one round trip a statement.
  virtual Session& session() = 0;
  /// BEGIN … COMMIT around `body`; ROLLBACK if it throws.
  virtual void transaction(const std::function<void(Session&)>& body) = 0;
  /// One statement that PostgreSQL runs in no transaction, such as CREATE INDEX CONCURRENTLY. No deadline here, and behind a
  /// transaction pooler no timeout of PostgreSQL's.
  virtual void outside_transaction(const std::string& sql) = 0;
  [[nodiscard]] virtual bool usable() const = 0;
  /// Whether the pool shall close it when it is given back, because its session is not as it was.
  void spoil(bool spoiled) { spoiled_ = spoiled; }
  [[nodiscard]] bool spoiled() const { return spoiled_; }
  /// Waits up to `timeout` for notifications that work is due, or until the descriptor `or_readable` is readable: the jobs
  /// they name, with "" for one that names none. At most 64; "" stands for the others.
  virtual std::set<std::string> wait_notifications(Duration timeout, int or_readable = -1) = 0;

 private:
  bool spoiled_ = false;
};

/// Opens one connection. Throws DatabaseUnavailable; its text names host, port and database, never the password.
std::unique_ptr<DatabaseConnection> connect_database(const Secret& url, const DatabaseSettings& settings);

/// The SQLSTATE with which the server refuses to be connected to; empty if it accepts, or says nothing for `patience`.
/// Asked after connect_database() has failed: what the server said is then only known in its own language.
std::string connection_refusal(const Secret& url, const DatabaseSettings& settings, Duration patience);

/// A bounded pool that opens connections when needed and throws away broken ones. Thread-safe.
class Database {
 public:
  static constexpr int kTries = 5;

  Database(Secret url, DatabaseSettings settings);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  /// Runs `body` with a connection of its own. Throws DatabaseUnavailable if none is free within connect_timeout.
  void with_connection(const std::function<void(DatabaseConnection&)>& body);

  /// Throws SchemaChanged where the statement does not fit the schema.
  Rows exec(const Statement& statement, const Params& params = {});
  Rows exec(const std::string& sql, const Params& params = {});
  /// The whole body again on a retryable error, at most `tries` times with a short random pause. Once more, whatever `tries`
  /// says, after a row found no partition of history: then those of the coming days are made first.
  void transaction(const std::function<void(Session&)>& body, int tries = kTries);
  /// exec(), again as transaction() is.
  Rows exec_retrying(const Statement& statement, const Params& params, int tries = kTries);
  /// exec_retrying(), but what is too_large_together() is thrown at once: the caller asks for less, and the time that the
  /// first try took may be all there is.
  Rows exec_divisible(const Statement& statement, const Params& params);

  /// A dedicated connection outside the pool, for LISTEN.
  std::unique_ptr<DatabaseConnection> dedicated() const;
  [[nodiscard]] bool transaction_pooler() const { return settings_.transaction_pooler; }
  /// False after a failure, true after a success.
  [[nodiscard]] bool healthy() const { return healthy_.load(); }
  /// For health pages: healthy, and for five seconds no statement has met another schema; some may fit where others do not.
  [[nodiscard]] bool usable() const;
  /// It is not usable for some seconds.
  void schema_differs();
  /// Round trips made so far, over all connections: what the cost tests count.
  [[nodiscard]] std::uint64_t round_trips() const { return round_trips_.load(); }

 private:
  class Lease;
  template <typename Body>
  auto retrying(int tries, Body body, bool divisible = false);
  void make_partitions();
  std::unique_ptr<DatabaseConnection> take();
  void give_back(std::unique_ptr<DatabaseConnection> connection);

  Secret url_;
  DatabaseSettings settings_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<DatabaseConnection>> idle_;  // guarded by mutex_
  int open_ = 0;                                           // guarded by mutex_
  std::atomic<bool> healthy_{false};
  std::atomic<SteadyTime> misfit_until_{SteadyTime{}};
  std::atomic<std::uint64_t> round_trips_{0};
};

}  // namespace takt
