#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "core/amqp/channel.h"
#include "core/config/config.h"
#include "core/db/database.h"
#include "core/observe/log.h"
#include "core/tick/signing.h"

namespace takt {

/// The command failed; the text says why and what to do. Exit code 1.
class CommandFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The command failed and has said so already. Exit code 1.
struct FailureShown {};

/// The command was called wrongly. Exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What commands share. Everything is made at first use, so that a command needs only what it uses.
class Context {
 public:
  std::string config_path = "takt.yaml";
  bool config_named = false;  ///< by --config
  std::string log_level = "info";
  bool log_json = false;

  void configure_logging(const std::string& service) const;
  /// A file that was named is there, whatever the command does with it: a mistyped name must not mean "defaults". Else UsageError.
  void require_named_config() const;
  /// The configuration. For what acts as the file says: apply, check, the services, worker --once, tick, jobs run, dlq prune by the
  /// file's own retention. Throws UsageError if the file is not there, ConfigError if it is wrong.
  const Config& config();
  /// The configuration, or the defaults if no file was named and none lies in this folder. For commands that need no more of it than
  /// how to connect: migrate (declares the default queue; services declare theirs), the commands that look, enqueue, pause, cancel,
  /// retry, replay and discard, and bench, which has jobs and a queue of its own. keys, cron and reference ask for none.
  const Config& config_or_defaults();
  /// Throws CommandFailed if TAKT_DATABASE_URL is missing or the database cannot be reached.
  Database& database();
  /// database(), and its schema is this binary's.
  Database& current_database();
  /// PostgreSQL's time, which this machine's clock need not agree with.
  Timestamp now();
  /// One connection more to the same database, for what no other statement may keep out (leases). Not opened yet.
  std::unique_ptr<Database> vital_database();
  amqp::BrokerSettings broker(const std::string& name);
  const KeyRing& keys();
  /// Who is acting: --by, else the login name.
  static std::string who(const std::string& given);

 private:
  [[nodiscard]] bool config_is_there() const;
  [[nodiscard]] std::string no_config() const;
  /// `vital`: of a lease or heartbeat.
  std::unique_ptr<Database> open_database(int pool, bool vital = false);

  std::optional<Config> config_, defaults_;
  std::unique_ptr<Database> database_;
  std::optional<KeyRing> keys_;
};

/// An environment variable that must be set; CommandFailed names it and shows an example.
Secret required_environment(const char* name, const char* example);

/// Asks on the terminal; `--yes` answers. Without a terminal and without --yes: UsageError.
bool confirm(const std::string& question, bool yes);

/// A time given on the command line: RFC 3339, or a duration that means so long before `now`, which is asked only then.
/// UsageError names the option.
Timestamp parse_moment(const std::string& text, const std::string& option, const std::function<Timestamp()>& now);
/// The same, but a duration means so long after `now`.
Timestamp parse_coming_moment(const std::string& text, const std::string& option, const std::function<Timestamp()>& now);
Duration parse_age(const std::string& text, const std::string& option);

}  // namespace takt
