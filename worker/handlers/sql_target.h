#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/config/config.h"
#include "core/db/bound_statement.h"
#include "core/db/database.h"
#include "worker/item.h"

namespace takt {

/// How far a statement came.
enum class SqlReach {
  here,     ///< PostgreSQL got it
  away,     ///< no connection can be made, or none that may write; it was not executed
  busy,     ///< every connection of the pool is in use; it was not sent
  refused,  ///< the set-up is wrong, and stays so until somebody changes it; it was not sent
};

struct SqlAnswer {
  SqlReach reach = SqlReach::here;
  HandlerResult result;  ///< of no meaning when busy
};

/// One database named under `databases`. Its connections log in as the URL's role and work as the job's; each statement
/// finds the session as a new connection has it, whatever the one before it did. Thread-safe; connects on the thread of who
/// calls execute(), under no lock.
class SqlTarget {
 public:
  SqlTarget(std::string name, NamedDatabase named, const Clock& clock);
  SqlAnswer execute(const BoundStatement& bound, const ClaimedItem& item);

 private:
  Database* open(std::string& fault);
  [[nodiscard]] DatabaseSettings settings() const;
  /// Executes on a connection that is open; `answer` is set once the statement may have been sent.
  void on(DatabaseConnection& connection, const BoundStatement& bound, const Params& params, std::optional<SqlAnswer>& answer);
  /// Makes the session as it was, so that the connection can be kept; false if the statement left a transaction open.
  bool clean(DatabaseConnection& connection) const;
  SqlAnswer not_opened(const DatabaseUnavailable& error, Duration took) const;

  const std::string name_;
  const NamedDatabase named_;
  const std::string clean_script_;
  const Clock& clock_;
  std::atomic<SteadyTime> answered_{SteadyTime::min()};  ///< when PostgreSQL last did
  std::mutex mutex_;
  std::unique_ptr<Database> database_;  // guarded by mutex_; stays once it is set
};

/// Why statements must not be executed in this session: its role is a superuser, or its login can become one. One statement;
/// nullopt if they may.
std::optional<std::string> superuser_fault(Session& session, const NamedDatabase& named);

}  // namespace takt
