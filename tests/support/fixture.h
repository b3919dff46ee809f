#pragma once
#include <functional>
#include <string>

#include "core/amqp/channel.h"
#include "core/config/config.h"
#include "core/db/database.h"
#include "core/tick/signing.h"
#include "worker/job_catalog.h"

namespace takt {

/// A database of its own on the run's private PostgreSQL, dropped with the object.
class TestDatabase {
 public:
  /// `migrated`: with Takt's schema.
  explicit TestDatabase(bool migrated = true);
  ~TestDatabase();
  TestDatabase(const TestDatabase&) = delete;
  TestDatabase& operator=(const TestDatabase&) = delete;

  Database& operator*() { return *database_; }
  Database* operator->() { return database_.get(); }
  [[nodiscard]] std::string url() const { return url_; }
  /// First column of the first row, as text or number.
  std::string text(const std::string& sql);
  std::int64_t number(const std::string& sql);
  /// Makes the database match the jobs given as YAML ("demo: {…}" lines under jobs).
  Config apply(const std::string& jobs);
  CatalogJob job(const std::string& name);

 private:
  std::string name_;
  std::string url_;
  std::unique_ptr<Database> admin_;
  std::unique_ptr<Database> database_;
};

/// A virtual host of its own on the run's private RabbitMQ, deleted with the object.
class TestVhost {
 public:
  TestVhost();
  ~TestVhost();
  TestVhost(const TestVhost&) = delete;
  TestVhost& operator=(const TestVhost&) = delete;
  [[nodiscard]] amqp::BrokerSettings settings(const std::string& name) const;
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
};

/// A pool of one, as the services have it for leases.
DatabaseSettings one_connection();

/// A broker that refuses connections.
amqp::BrokerSettings nowhere();

/// Runs rabbitmqctl against the private broker; throws if it fails.
void rabbitmqctl(const std::string& arguments);

/// How much longer than what is shipped this build may take: 1, and 3 under sanitizers (tests/CMakeLists.txt).
constexpr int kPatience = TAKT_TEST_PATIENCE;

/// Waits until `condition` holds, at most kPatience times `seconds`; false if it never did.
bool eventually(const std::function<bool()>& condition, int seconds = 20);

/// An HTTP job named `name` that is never called, for tests of everything around the handler.
std::string plain_job(const std::string& name, const std::string& more = "");

}  // namespace takt
