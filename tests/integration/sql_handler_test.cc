#include "worker/handlers/sql_handler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "core/process/random.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/listening.h"

namespace takt {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::StartsWith;

/// A port that answers nobody, as behind a firewall that drops packets: its queue of connections is full.
class SilentPort {
 public:
  SilentPort() {
    for (auto& one : waiting_) {
      one = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      listening_.connect(one);
    }
  }
  ~SilentPort() {
    for (const int one : waiting_) ::close(one);
  }
  SilentPort(const SilentPort&) = delete;
  SilentPort& operator=(const SilentPort&) = delete;
  [[nodiscard]] int port() const { return listening_.port(); }

 private:
  Listening listening_{0};
  std::array<int, 4> waiting_{};
};

struct SqlHandlerTest : testing::Test {
  const std::string tag = random_id().substr(0, 12);
  const std::string login = "login_" + tag, role = "app_" + tag;
  TestDatabase database{false};
  FakeClock clock;
  Metrics metrics;
  RunControl control;
  std::map<std::string, NamedDatabase> databases;
  std::unique_ptr<SqlHandler> handler;

  void SetUp() override {
    database->exec("CREATE ROLE " + login + " LOGIN PASSWORD 'secret'");
    database->exec("CREATE ROLE " + role);
    database->exec("GRANT " + role + " TO " + login);
    database->exec(std::string("CREATE TABLE seen (item bigint, what text)"));
    database->exec("GRANT ALL ON seen TO " + role);
    declare("app", url_of(login));
  }
  void TearDown() override {
    handler.reset();
    for (const auto& one : {login, role}) {
      database->exec("DROP OWNED BY " + one);
      database->exec("DROP ROLE " + one);
    }
    for (const auto& [name, one] : databases) ::unsetenv(one.url_env.c_str());
  }

  [[nodiscard]] std::string url_of(const std::string& user, const std::string& password = "secret") const {
    const auto url = database.url();
    return "postgresql://" + user + ":" + password + url.substr(url.find('@'));
  }
  void declare(const std::string& name, const std::string& url) {
    const std::string variable = "URL_" + name + "_" + tag;
    ::setenv(variable.c_str(), url.c_str(), 1);
    databases[name] = {variable, role, false, 2, 10s};
    handler.reset();
  }
  static JobDefinition job(const std::string& statement, const std::string& name = "app") {
    JobDefinition job;
    job.name = "demo";
    job.handler = SqlHandlerConfig{name, statement};
    return job;
  }
  SqlHandler& made() {
    if (!handler) handler = std::make_unique<SqlHandler>(databases, clock, metrics);
    return *handler;
  }
  std::vector<HandlerResult> run(const JobDefinition& job, int items = 1) {
    std::vector<ClaimedItem> claimed;
    for (int i = 1; i <= items; ++i) claimed.push_back({i, 1, "", R"({"n": 1})", 0ms, 0ms});
    std::vector<HandlerResult> results(claimed.size());
    made().run({job, 7, "trace", std::chrono::steady_clock::now() + 1h, control}, claimed, results);
    return results;
  }
  std::string seen() { return database.text("SELECT coalesce(string_agg(what, ' ' ORDER BY item, what), '') FROM seen"); }
  void function(const std::string& name, const std::string& body) {
    database->exec("CREATE OR REPLACE FUNCTION " + name + " LANGUAGE plpgsql AS $f$ BEGIN " + body + " END $f$");
  }
  void let_in(bool allowed) {
    Database elsewhere(Secret(database.url().substr(0, database.url().rfind('/')) + "/postgres"), {});
    elsewhere.exec("ALTER DATABASE " + name() + " ALLOW_CONNECTIONS " + (allowed ? "true" : "false"));
  }
  void throw_out() {
    database->exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '" + login + "'");
    EXPECT_TRUE(eventually([&] { return sessions() == 0; }));
  }
  std::int64_t sessions() { return database.number("SELECT count(*) FROM pg_stat_activity WHERE usename = '" + login + "'"); }
  [[nodiscard]] std::string name() const { return database.url().substr(database.url().rfind('/') + 1); }
  void admin(const std::string& sql) { database->exec(sql); }
};

TEST_F(SqlHandlerTest, ExecutesAStatementAsItsRoleWithTheItemAsParameters) {
  const auto results = run(job("INSERT INTO seen SELECT $3, current_user || ($1['n'])::text || $4 RETURNING 'noop' AS result"), 2);
  EXPECT_EQ(results[0].item_class, ItemClass::noop) << results[0].error;
  EXPECT_EQ(results[1].item_class, ItemClass::noop) << results[1].error;
  EXPECT_EQ(seen(), role + "11 " + role + "11");
}

TEST_F(SqlHandlerTest, C19_Finding23_LeavesNothingOfOneItemsSessionToTheNext) {
  function("look(item bigint) RETURNS void", R"(
    INSERT INTO seen VALUES (item, concat_ws('/', current_setting('is_superuser'), current_user = session_user, nullif(current_setting('app.mark', true), ''),
      to_regclass('pg_temp.mine'), (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE name = 'kept'),
      (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), (SELECT count(*) FROM pg_listening_channels()),
      current_setting('statement_timeout'), current_setting('work_mem'), current_setting('search_path')));)");
  function("spoil(item bigint) RETURNS void", R"(
    PERFORM set_config('app.mark', 'theirs', false), set_config('search_path', 'pg_temp', false), set_config('statement_timeout', '0', false);
    PERFORM set_config('work_mem', '1MB', false), pg_advisory_lock(42), set_config('role', 'none', false);
    CREATE TEMP TABLE mine (n int); LISTEN there; PREPARE theirs AS SELECT 1;
    EXECUTE 'DECLARE kept CURSOR WITH HOLD FOR SELECT 1';)");
  admin("ALTER ROLE " + login + " SET work_mem = '7MB'");
  const std::string look = "SELECT public.look($3)", both = "SELECT public.look($3), public.spoil($3)";
  const std::string clean = "off/f/0/0/0/0/10s/7MB/\"$user\", public";
  for (const auto& result : run(job(both), 3)) EXPECT_EQ(result.item_class, ItemClass::done) << result.error;
  run(job(look));
  EXPECT_EQ(seen(), clean + " " + clean + " " + clean + " " + clean);
  EXPECT_EQ(database.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42"), 0) << "kept by no idle connection";
  EXPECT_EQ(sessions(), 1) << "one connection served them all";
}

TEST_F(SqlHandlerTest, C19_Finding23_AStatementThatFailsLeavesNothingEither) {
  function("fail(item bigint) RETURNS void", "PERFORM set_config('app.mark', 'theirs', false), pg_advisory_lock(42); RAISE 'no';");
  EXPECT_EQ(run(job("SELECT public.fail($3)"))[0].reason, "sqlstate_P0001");
  run(job("INSERT INTO seen SELECT $3, coalesce(current_setting('app.mark', true), '') || count(*) FROM pg_locks WHERE objid = 42"));
  EXPECT_EQ(seen(), "0");
}

TEST_F(SqlHandlerTest, Finding23_RefusesALoginThatCanBecomeASuperuser) {
  function("become() RETURNS text", "PERFORM set_config('role', 'none', false); RETURN current_setting('is_superuser');");
  const auto refused = [&](const std::string& change, const std::string& back, const std::string& words) {
    admin(change);
    handler.reset();
    const auto results = run(job("INSERT INTO seen SELECT $3, public.become()"), 2);
    for (const auto& result : results) {
      EXPECT_EQ(result.item_class, ItemClass::blocked) << change;
      EXPECT_EQ(result.reason, "sql_superuser") << change;
      EXPECT_THAT(result.error, HasSubstr(words));
    }
    admin(back);
  };
  const std::string other = "other_" + tag;
  admin("CREATE ROLE " + other + " SUPERUSER");
  refused("ALTER ROLE " + login + " SUPERUSER", "ALTER ROLE " + login + " NOSUPERUSER", "its login " + login + " is a superuser");
  refused("ALTER ROLE " + role + " SUPERUSER", "ALTER ROLE " + role + " NOSUPERUSER", "the role " + role + " is a superuser");
  refused("GRANT " + other + " TO " + login, "REVOKE " + other + " FROM " + login, "may SET ROLE " + other + ", which is a superuser");
  refused("GRANT pg_execute_server_program TO " + login, "REVOKE pg_execute_server_program FROM " + login, "can become a superuser");
  admin("DROP ROLE " + other);
  EXPECT_EQ(seen(), "");
  handler.reset();
  EXPECT_EQ(run(job("INSERT INTO seen SELECT $3, public.become()"), 2)[1].item_class, ItemClass::done);
  EXPECT_EQ(seen(), "off off");

  admin("ALTER ROLE " + login + " SUPERUSER");
  databases["app"].superuser = true;
  handler.reset();
  EXPECT_EQ(run(job("SELECT public.become()"))[0].item_class, ItemClass::done) << "by name it is allowed";
}

TEST_F(SqlHandlerTest, Finding23_AStatementThatLeavesATransactionOpenIsBlocked) {
  const auto result = run(job("BEGIN"))[0];
  EXPECT_EQ(result.item_class, ItemClass::blocked);
  EXPECT_EQ(result.reason, "sql_transaction");
  EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::done);
}

TEST_F(SqlHandlerTest, C19_Finding22_ADatabaseThatIsAwayCostsNoAttemptAndOneTry) {
  EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::done);
  let_in(false);
  throw_out();
  clock.advance(2s);
  const auto results = run(job("INSERT INTO seen VALUES ($3, 'done')"), 5);
  EXPECT_EQ(results[0].item_class, ItemClass::skipped) << results[0].reason << results[0].error;
  EXPECT_EQ(results[0].reason, "database_away");
  ASSERT_TRUE(results[0].retry_after);
  EXPECT_GT(*results[0].retry_after, 0ms);
  for (std::size_t i = 1; i < 5; ++i) EXPECT_EQ(results[i].item_class, ItemClass::handed_back);
  EXPECT_EQ(made().readiness(job("")).items, 0) << "nothing is claimed for it";
  EXPECT_GT(made().readiness(job("")).pause, 0ms);
  EXPECT_THAT(metrics.text(), HasSubstr("takt_circuit_open{job=\"demo\"} 1"));

  clock.advance(2s);
  EXPECT_EQ(made().readiness(job("")).items, 1) << "one tries";
  EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::skipped);
  EXPECT_EQ(made().readiness(job("")).items, 0);
  let_in(true);
  clock.advance(3s);
  EXPECT_EQ(run(job("INSERT INTO seen VALUES ($3, 'done')"))[0].item_class, ItemClass::done);
  EXPECT_EQ(made().readiness(job("")).items, 2) << "then two, four, and so on";
  EXPECT_EQ(run(job("SELECT 1"), 100).back().item_class, ItemClass::done);
  EXPECT_GT(made().readiness(job("")).items, 1000);
  EXPECT_THAT(metrics.text(), HasSubstr("takt_circuit_open{job=\"demo\"} 0"));
  EXPECT_EQ(seen(), "done");
}

TEST_F(SqlHandlerTest, ASessionIsAsTheDatabaseAndItsRolesHaveItAndNotAsTaktsOwn) {
  const std::string settings =
      "concat_ws(' ', current_setting('enable_seqscan'), current_setting('jit'), current_setting('timezone'), "
      "current_setting('lock_timeout'))";
  admin("ALTER ROLE " + login + " SET timezone = 'Europe/Madrid'");
  admin("ALTER ROLE " + login + " SET jit = on");
  const auto looks = job("INSERT INTO seen VALUES ($3, " + settings + ")");
  EXPECT_EQ(run(looks, 2)[1].item_class, ItemClass::done);
  EXPECT_EQ(seen(), "on on Europe/Madrid 5s on on Europe/Madrid 5s") << "also once it was put back";
  EXPECT_EQ(database.text("SELECT " + settings), "off off UTC 5s");
}

TEST_F(SqlHandlerTest, Finding22_AConnectionThatTheServerHasClosedMeanwhileCostsNothing) {
  EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::done);
  throw_out();
  clock.advance(2s);
  for (const auto& result : run(job("SELECT 1"), 3)) EXPECT_EQ(result.item_class, ItemClass::done) << result.error;
}

TEST_F(SqlHandlerTest, Finding22_AReadOnlyServerIsAway) {
  admin("ALTER ROLE " + login + " SET default_transaction_read_only = on");
  const auto results = run(job("INSERT INTO seen VALUES ($3, 'done')"), 2);
  EXPECT_EQ(results[0].item_class, ItemClass::skipped) << results[0].reason;
  EXPECT_EQ(results[1].item_class, ItemClass::handed_back);
}

TEST_F(SqlHandlerTest, Finding22_AConnectionThatBreaksUnderAStatementLeavesItsOutcomeOpen) {
  std::thread killer([&] {
    const std::string sleeping = "SELECT count(*) FROM pg_stat_activity WHERE usename = '" + login + "' AND wait_event = 'PgSleep'";
    EXPECT_TRUE(eventually([&] { return database.number(sleeping) == 1; }));
    throw_out();
  });
  const auto result = run(job("SELECT pg_sleep(30)"))[0];
  killer.join();
  EXPECT_EQ(result.item_class, ItemClass::error);
  EXPECT_EQ(result.reason, "connection_lost");
  EXPECT_THAT(result.error, HasSubstr("what came of it is not known"));
  EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::done) << "the next one connects anew";
}

TEST_F(SqlHandlerTest, C19_Finding22_ADatabaseBehindDroppedPacketsDelaysNoOther) {
  const SilentPort silent;
  declare("dead", "postgresql://" + login + ":secret@127.0.0.1:" + std::to_string(silent.port()) + "/x?connect_timeout=3");
  made();
  std::vector<HandlerResult> dead;
  std::atomic<bool> ended{false};
  std::thread stuck([&] {
    dead = run(job("SELECT 1", "dead"), 5);
    ended = true;
  });
  std::this_thread::sleep_for(100ms);  // it connects, and nothing tells
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(run(job("SELECT 1"))[0].item_class, ItemClass::done);
  EXPECT_LT(seconds_between(began, std::chrono::steady_clock::now()), 2);
  EXPECT_FALSE(ended) << "the other was still connecting";
  stuck.join();
  EXPECT_EQ(dead[0].item_class, ItemClass::skipped);
  EXPECT_EQ(dead[1].item_class, ItemClass::handed_back);
}

TEST_F(SqlHandlerTest, C19_Finding22_AWrongSetUpBlocksWithASentence) {
  const auto blocked = [&](const std::string& reason, const std::string& words, const std::string& name = "app") {
    handler.reset();
    for (const auto& result : run(job("SELECT 1", name), 2)) {
      EXPECT_EQ(result.item_class, ItemClass::blocked) << reason;
      EXPECT_THAT(result.reason, StartsWith(reason));
      EXPECT_THAT(result.error, HasSubstr(words));
      EXPECT_THAT(result.error, testing::Not(HasSubstr("secret")));
    }
    EXPECT_GT(made().readiness(job("", name)).items, 1) << "the database is not away";
  };
  blocked("sql_database_unknown", "is not declared", "elsewhere");
  declare("app", url_of(login, "secretly-wrong"));
  blocked("sql_connect_28P01", "");
  declare("app", url_of("nobody_" + tag));
  blocked("sql_connect_28", "");
  declare("app", url_of(login) + "_absent");
  blocked("sql_connect_3D000", "");
  declare("app", "postgres:/what is this");
  blocked("sql_connect_22023", "the URL is not understood");
  declare("app", url_of(login));
  databases["app"].role = "absent_" + tag;
  blocked("sql_role", "absent_" + tag);
  databases["app"].role = "pg_monitor";
  blocked("sql_role", "permission denied");
  databases["app"].url_env = "TAKT_NOT_SET";
  blocked("sql_url_missing", "TAKT_NOT_SET is not set in this worker");
}

TEST_F(SqlHandlerTest, Finding36_AParameterThatThereIsNotBlocks) {
  const auto results = run(job("SELECT $5"), 2);
  EXPECT_EQ(results[1].item_class, ItemClass::blocked);
  EXPECT_EQ(results[1].reason, "sql_parameter");
  EXPECT_EQ(run(job("SELECT /* $5 */ $q$ $5 $q$, E'it\\'s $5'"))[0].item_class, ItemClass::done);
}

}  // namespace
}  // namespace takt
