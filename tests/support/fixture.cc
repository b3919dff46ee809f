#include "tests/support/fixture.h"

#include <cstdlib>
#include <fstream>
#include <regex>
#include <thread>

#include "core/config/apply.h"
#include "core/db/migrator.h"
#include "core/process/random.h"

namespace takt {

namespace {

/// A variable of the env file that deploy/private-services wrote.
std::string service_variable(const std::string& name) {
  const char* directory = std::getenv("TAKT_TEST_SERVICES");
  if (directory == nullptr) throw std::runtime_error("run these tests through ctest, which starts their services");
  std::ifstream file(std::string(directory) + "/env");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::smatch found;
  if (!std::regex_search(text, found, std::regex(name + "='?([^' \n]*)")))
    throw std::runtime_error("no " + name + " in the services' env file");
  return found[1];
}

std::string replace_tail(const std::string& url, const std::string& tail) { return url.substr(0, url.rfind('/') + 1) + tail; }

DatabaseSettings settings(int pool) {
  DatabaseSettings settings;
  settings.pool = pool;
  return settings;
}

}  // namespace

TestDatabase::TestDatabase(bool migrated) : name_("t" + random_id().substr(0, 16)) {
  const std::string admin_url = service_variable("TAKT_DATABASE_URL");
  admin_ = std::make_unique<Database>(Secret(admin_url), settings(1));
  admin_->exec("CREATE DATABASE " + name_);
  url_ = replace_tail(admin_url, name_);
  database_ = std::make_unique<Database>(Secret(url_), settings(8));
  if (migrated) migrate(*database_, [](const std::string&) {});
}

TestDatabase::~TestDatabase() {
  database_.reset();
  admin_->exec("DROP DATABASE " + name_ + " WITH (FORCE)");
}

std::string TestDatabase::text(const std::string& sql) { return std::string(database_->exec(sql).text(0, 0)); }
std::int64_t TestDatabase::number(const std::string& sql) { return database_->exec(sql).integer(0, 0); }

Config TestDatabase::apply(const std::string& jobs) {
  auto config = parse_config("jobs:\n" + jobs, "test.yaml");
  apply_definitions(*database_, config, "test", false, Removal::prune);
  return config;
}

CatalogJob TestDatabase::job(const std::string& name) {
  const SystemClock own;
  DatabaseClock clock(own);
  JobCatalog catalog(*database_, clock);
  catalog.refresh();
  const auto found = catalog.known(name);
  if (!found) throw std::runtime_error("no job " + name);
  return *found;
}

TestVhost::TestVhost() : name_("t" + random_id().substr(0, 16)) {
  rabbitmqctl("add_vhost " + name_);
  rabbitmqctl("set_permissions -p " + name_ + " takt '.*' '.*' '.*'");
}

TestVhost::~TestVhost() {
  try {
    rabbitmqctl("delete_vhost " + name_);
  } catch (const std::exception&) {
    // The broker's whole data folder goes with the build.
  }
}

amqp::BrokerSettings TestVhost::settings(const std::string& name) const {
  amqp::BrokerSettings settings;
  settings.url = Secret(replace_tail(service_variable("TAKT_AMQP_URL"), name_));
  settings.name = name;
  settings.heartbeat = std::chrono::seconds(5);
  settings.backoff_max = std::chrono::milliseconds(500);
  return settings;
}

DatabaseSettings one_connection() { return settings(1); }

amqp::BrokerSettings nowhere() {
  amqp::BrokerSettings settings;
  settings.url = Secret("amqp://nobody:nothing@127.0.0.1:1/");
  settings.name = "nowhere";
  return settings;
}

void rabbitmqctl(const std::string& arguments) {
  const std::string command = service_variable("TAKT_RABBITMQCTL") + " -q " + arguments + " >/dev/null 2>&1";
  if (std::system(command.c_str()) != 0) throw std::runtime_error("rabbitmqctl " + arguments + " failed");
}

bool eventually(const std::function<bool()>& condition, int seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kPatience * seconds);
  while (std::chrono::steady_clock::now() < end) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return condition();
}

std::string plain_job(const std::string& name, const std::string& more) {
  return "  " + name + ": {handler: {http: {url: 'http://127.0.0.1:1/', method: POST}}" + (more.empty() ? "" : ", " + more) + "}\n";
}

}  // namespace takt
