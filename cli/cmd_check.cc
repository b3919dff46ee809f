#include <curl/curl.h>

#include <algorithm>
#include <iostream>
#include <set>

#include "cli/commands.h"
#include "cli/installation_view.h"
#include "cli/services.h"
#include "core/amqp/topology.h"
#include "core/config/apply.h"
#include "core/db/bound_statement.h"
#include "core/db/migrator.h"
#include "core/text/text.h"
#include "worker/handlers/sql_target.h"

namespace takt {

namespace {

/// Prints one line a finding and counts the bad ones.
class Findings {
 public:
  explicit Findings(bool json) : json_(json) {}
  void good(const std::string& what, const std::string& detail) { add("ok    ", true, what, detail); }
  /// Somebody wants it so.
  void note(const std::string& what, const std::string& detail) { add("note  ", true, what, detail); }
  void bad(const std::string& what, const std::string& detail) {
    ++faults_;
    add("FAULT ", false, what, detail);
  }
  [[nodiscard]] int faults() const { return faults_; }
  void finish() const {
    if (json_)
      std::cout << list_.dump(2) << "\n";
    else
      std::cout << (faults_ == 0 ? "all good" : std::to_string(faults_) + (faults_ == 1 ? " fault" : " faults")) << "\n";
  }

 private:
  void add(const char* word, bool ok, const std::string& what, const std::string& detail) {
    if (json_)
      list_.push_back({{"ok", ok}, {"what", what}, {"detail", detail}});
    else
      std::cout << word << what << ": " << detail << "\n";
  }
  bool json_;
  int faults_ = 0;
  nlohmann::json list_ = nlohmann::json::array();
};

/// Runs one check; what it throws is its fault.
template <typename Check>
bool look(Findings& findings, const std::string& what, Check check) {
  try {
    findings.good(what, check());
    return true;
  } catch (const std::exception& error) {
    findings.bad(what, error.what());
    return false;
  }
}

std::string check_keys(Context& context) {
  std::string text;
  for (const auto& key : context.keys().keys()) {
    text += (text.empty() ? "" : ", ") + std::string(to_string(key.role)) + " " + key.fingerprint;
    if (key.until) text += " until " + format_rfc3339(*key.until);
  }
  return text;
}

std::string check_broker(Context& context) {
  amqp::Channel channel(context.broker("takt check"));
  for (const auto& queue : {amqp::kDeadQueue, amqp::kQuarantineQueue}) {
    if (!channel.inspect_queue(queue)) throw CommandFailed("queue " + queue + " is missing; run \"takt migrate\"");
  }
  std::vector<std::string> there;
  std::string to_come;
  for (const auto& queue : known_queues(context)) {
    if (channel.inspect_queue(amqp::tick_queue(queue)))
      there.push_back(queue);
    else
      to_come += (to_come.empty() ? "; the services will declare " : ", ") + queue;
  }
  amqp::declare_topology(channel, there);  // idempotent; tells where an existing one differs
  return "reachable, " + std::to_string(there.size()) + (there.size() == 1 ? " queue" : " queues") + to_come;
}

/// Connects (and agrees on TLS) without sending a request.
std::string check_endpoint(const HttpHandlerConfig& http) {
  CURL* easy = curl_easy_init();
  char error[CURL_ERROR_SIZE] = {};
  curl_easy_setopt(easy, CURLOPT_URL, http.url.c_str());
  curl_easy_setopt(easy, CURLOPT_CONNECT_ONLY, 1L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_PROXY, "");
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(http.connect_timeout.count()));
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(http.connect_timeout.count()));
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
  if (!http.ca_file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, http.ca_file.c_str());
  const CURLcode code = curl_easy_perform(easy);
  curl_easy_cleanup(easy);
  if (code != CURLE_OK) throw CommandFailed(http.url + ": " + printable(error[0] != '\0' ? error : curl_easy_strerror(code), 300));
  return http.method + " " + http.url + " can be reached";
}

/// Whether a rotation would leave a service behind: it holds none of the next keys that are known here.
void check_next_keys(Findings& findings, const Installation& installation, const KeyRing& keys) {
  for (const auto& key : keys.keys()) {
    if (key.role != KeyRole::next) continue;
    for (const auto& service : installation.services) {
      if (!service.silent() && !service.holds(key.fingerprint))
        findings.note("signing keys", service.identity.kind + " " + service.identity.name() + " does not hold the next key " +
                                          key.fingerprint + "; give it that key before you rotate (docs/keys.md)");
    }
  }
}

void check_services(Findings& findings, Database& database, const KeyRing* keys) {
  const auto installation = read_installation(database);
  if (keys != nullptr) check_next_keys(findings, installation, *keys);
  if (const auto waiting = installation.waiting_in(amqp::kQuarantineQueue).value_or(0); waiting > 0)
    findings.note("quarantine", std::to_string(waiting) + (waiting == 1 ? " message" : " messages") +
                                    " that no worker took for a genuine tick; \"takt quarantine\" shows why, and discards them");
  const auto troubles = troubles_of(installation);
  if (std::all_of(troubles.begin(), troubles.end(), [](const auto& one) { return one.meant; }))
    findings.good("services", living_by_role(installation));
  for (const auto& one : troubles) {
    if (one.meant)
      findings.note("services", one.text);
    else
      findings.bad("services", one.text);
  }
}

/// Each statement of a job is prepared by the role that will execute it, so that a fault in it is known before it costs attempts.
void check_statements(Findings& findings, const Config& config, const std::string& database, DatabaseConnection& connection) {
  for (const auto& job : config.jobs) {
    const auto* sql = std::get_if<SqlHandlerConfig>(&job.handler);
    if (sql == nullptr || sql->database != database) continue;
    try {
      connection.transaction([&](Session& on) { on.judge(bind_statement(sql->statement).sql); });
    } catch (const DatabaseError& error) {
      findings.bad("statement of " + job.name, printable(error.what(), 300));
    }
  }
}

void check_jobs(Findings& findings, const Config& config) {
  for (const auto& [name, database] : config.databases) {
    look(findings, "database " + name, [&, &named = database] {
      DatabaseSettings settings;
      settings.role = named.role;
      settings.pool = 1;
      settings.takts_tables = false;
      Database opened(required_environment(named.url_env.c_str(), "its URL"), settings);
      opened.with_connection([&](DatabaseConnection& connection) {
        if (const auto fault = superuser_fault(connection.session(), named)) throw CommandFailed(*fault);
        check_statements(findings, config, name, connection);
      });
      return "reachable as " + named.role;
    });
  }
  std::set<std::string> seen;
  for (const auto& job : config.jobs) {
    const auto* http = std::get_if<HttpHandlerConfig>(&job.handler);
    if (http == nullptr) continue;
    if (const char* token = http->bearer_env.empty() ? "unused" : std::getenv(http->bearer_env.c_str());
        token == nullptr || *token == '\0') {
      findings.bad("job " + job.name, "bearer_env: " + http->bearer_env + (token == nullptr ? " is not set here" : " is empty here") +
                                          "; a worker without it leaves this job's items alone");
    }
    if (seen.insert(http->url).second) look(findings, "endpoint of " + job.name, [&] { return check_endpoint(*http); });
  }
}

}  // namespace

void add_check(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("check", "judge file, keys, database, services, broker and endpoints, and say what is wrong");
  auto json = std::make_shared<bool>(false);
  auto offline = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "findings as JSON");
  auto before_start = std::make_shared<bool>(false);
  command->add_flag("--file-only", *offline, "only the file");
  command->add_flag("--before-start", *before_start, "services need not run yet");
  command->callback([&context, json, offline, before_start] {
    context.configure_logging("check");
    Findings findings(*json);
    bool readable = true;
    try {
      const auto jobs = context.config().jobs.size();
      if (jobs == 0)
        findings.bad(context.config_path, "names no jobs. Is it the right file? \"takt apply\" refuses it");
      else
        findings.good(context.config_path, std::to_string(jobs) + (jobs == 1 ? " job" : " jobs"));
    } catch (const ConfigError& error) {
      readable = false;
      for (const auto& fault : error.faults()) findings.bad("file", fault);
    }
    if (readable && !*offline) {
      const bool keys = look(findings, "signing keys", [&] { return check_keys(context); });
      const bool database = look(findings, "database", [&] {
        const auto version = context.current_database().exec(std::string("SHOW server_version"));
        return "PostgreSQL " + std::string(version.text(0, 0)) + ", schema current";
      });
      if (database) {
        look(findings, "definitions", [&] {
          const auto changes = apply_definitions(context.database(), context.config(), "check", true);
          const auto removed = join(removed_jobs(changes), ", ");
          if (!changes.empty())
            throw CommandFailed(std::to_string(changes.size()) + (changes.size() == 1 ? " difference" : " differences") +
                                " between file and database; run \"takt apply\"" +
                                (removed.empty() ? "" : "; the file does not name " + removed));
          return std::string("the database matches the file");
        });
      }
      if (database && !*before_start) check_services(findings, context.database(), keys ? &context.keys() : nullptr);
      if (database)
        look(findings, "broker", [&] { return check_broker(context); });
      else
        findings.note("broker", "not looked at: which queues are needed, the database knows");
      check_jobs(findings, context.config());
    }
    findings.finish();
    if (findings.faults() > 0) throw FailureShown{};
  });
}

}  // namespace takt
