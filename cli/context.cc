#include "cli/context.h"

#include <pwd.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>

#include "core/db/migrator.h"
#include "core/db/query.h"
#include "core/text/text.h"

namespace takt {

void Context::configure_logging(const std::string& service) const {
  const LogLevel level = log_level == "debug"   ? LogLevel::debug
                         : log_level == "warn"  ? LogLevel::warn
                         : log_level == "error" ? LogLevel::error
                                                : LogLevel::info;
  configure_log(level, log_json ? LogFormat::json : LogFormat::text, service);
}

bool Context::config_is_there() const {
  std::error_code fault;  // a folder that may not be searched: reading the file says so
  return std::filesystem::exists(config_path, fault) || fault;
}

std::string Context::no_config() const {
  const auto path = (std::filesystem::current_path() / config_path).lexically_normal();
  return "there is no \"" + path.filename().string() + "\" in " + path.parent_path().string();
}

void Context::require_named_config() const {
  if (config_named && !config_is_there()) throw UsageError("--config: " + no_config() + "; give the path of the configuration file");
}

const Config& Context::config() {
  if (!config_) {
    if (!config_is_there()) throw UsageError(no_config() + "; start in the folder that holds it, or name it with --config");
    config_ = load_config(config_path);
  }
  return *config_;
}

const Config& Context::config_or_defaults() {
  if (config_named || config_is_there()) return config();
  if (!defaults_) defaults_ = parse_config("", config_path);
  return *defaults_;
}

Secret required_environment(const char* name, const char* example) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') throw CommandFailed(std::string(name) + " is not set; give " + example);
  return Secret(value);
}

std::unique_ptr<Database> Context::open_database(int pool, bool vital) {
  const auto& settings = config_or_defaults().database;
  DatabaseSettings wanted;
  wanted.pool = pool;
  wanted.connect_timeout = settings.connect_timeout;
  wanted.statement_timeout = settings.statement_timeout;
  if (vital) {
    // Leases end meanwhile: who keeps them has to know soon that nobody answers.
    wanted.statement_timeout = std::min<Duration>(wanted.statement_timeout, std::chrono::seconds(5));
    wanted.answer_grace = std::chrono::seconds(1);
  }
  wanted.lock_timeout = settings.lock_timeout;
  wanted.transaction_pooler = settings.transaction_pooler;
  return std::make_unique<Database>(required_environment("TAKT_DATABASE_URL", "postgresql://user:password@host:5432/database"), wanted);
}

std::unique_ptr<Database> Context::vital_database() { return open_database(1, true); }

Database& Context::database() {
  if (!database_) {
    database_ = open_database(config_or_defaults().database.pool);
    try {
      database_->exec(std::string("SELECT 1"));
    } catch (const std::exception& error) {
      throw CommandFailed(std::string("TAKT_DATABASE_URL: ") + error.what());
    }
  }
  return *database_;
}

Database& Context::current_database() {
  auto& database = this->database();
  try {
    require_current_schema(database);
  } catch (const SchemaMismatch& error) {
    throw CommandFailed(error.what());
  }
  return database;
}

namespace {
struct Now {
  Timestamp at;
  static constexpr auto fields() { return std::tuple(Field("now_us", &Now::at)); }
};
constexpr Query<NoRequest, Now> kNow{"now", "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us"};
}  // namespace

Timestamp Context::now() { return query(current_database(), kNow).at(0).at; }

amqp::BrokerSettings Context::broker(const std::string& name) {
  const auto& settings = config_or_defaults().broker;
  amqp::BrokerSettings broker;
  broker.url = required_environment("TAKT_AMQP_URL", "amqp://user:password@host:5672/vhost");
  broker.heartbeat = settings.heartbeat;
  broker.connect_timeout = settings.connect_timeout;
  broker.ca_file = settings.ca_file;
  broker.name = name;
  return broker;
}

const KeyRing& Context::keys() {
  if (!keys_) {
    try {
      keys_ = KeyRing::from_environment();
    } catch (const std::invalid_argument& error) {
      throw CommandFailed(error.what());
    }
  }
  return *keys_;
}

std::string Context::who(const std::string& given) {
  if (!given.empty()) return printable(given, 100);
  for (const char* variable : {"SUDO_USER", "USER", "LOGNAME"}) {
    if (const char* value = std::getenv(variable); value != nullptr && *value != '\0') return printable(value, 100);
  }
  const passwd* entry = ::getpwuid(::getuid());
  return entry != nullptr ? entry->pw_name : "uid " + std::to_string(::getuid());
}

bool confirm(const std::string& question, bool yes) {
  if (yes) return true;
  if (::isatty(STDIN_FILENO) == 0) throw UsageError(question + " Not asked, since there is no terminal: give --yes");
  std::cerr << question << " [y/N] " << std::flush;
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

namespace {

UsageError no_moment(const std::string& text, const std::string& option, const char* duration) {
  const auto shown = option + ": \"" + printable(text, 60) + "\" ";
  if (parse_rfc3339(text + "Z")) return UsageError(shown + "lacks its zone; of UTC it is " + text + "Z");
  return UsageError(shown + "is neither a time such as 2026-11-21T10:00:00Z nor " + duration);
}

}  // namespace

Timestamp parse_moment(const std::string& text, const std::string& option, const std::function<Timestamp()>& now) {
  if (const auto time = parse_rfc3339(text)) return *time;
  if (const auto age = parse_duration(text)) return now() - *age;
  throw no_moment(text, option, "an age such as 2h");
}

Timestamp parse_coming_moment(const std::string& text, const std::string& option, const std::function<Timestamp()>& now) {
  if (const auto time = parse_rfc3339(text)) return *time;
  if (const auto from_now = parse_duration(text)) return now() + *from_now;
  throw no_moment(text, option, "a time from now such as 2h");
}

Duration parse_age(const std::string& text, const std::string& option) {
  const auto age = parse_duration(text);
  if (!age) throw UsageError(option + ": \"" + printable(text, 60) + "\" is not a duration such as 90s, 2h or 30d");
  return *age;
}

}  // namespace takt
