#include "core/db/database.h"
#include "core/db/retry_end.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <barrier>
#include <thread>
#include <utility>

#include "core/config/apply.h"
#include "core/db/migrator.h"
#include "tests/support/fixture.h"
#include "tests/support/http_server.h"

namespace takt {
namespace {

using namespace std::chrono_literals;
using namespace std::string_literals;

TEST(Migrations, AreAppliedOnceByManyAtTheSameTime) {
  TestDatabase database(false);
  std::atomic<int> applied{0};
  std::vector<std::thread> pods;
  for (int i = 0; i < 8; ++i) {
    pods.emplace_back([&] { applied += migrate(*database, [](const std::string&) {}).applied; });
  }
  for (auto& pod : pods) pod.join();
  EXPECT_EQ(applied.load(), database.number("SELECT count(*) FROM takt.schema_migrations"));
  EXPECT_NO_THROW(require_current_schema(*database));
}

TEST(Migrations, RefuseAnAlteredOrNewerSchema) {
  TestDatabase database;
  database->exec("UPDATE takt.schema_migrations SET checksum = 'x' WHERE version = 1");
  EXPECT_THROW(require_current_schema(*database), SchemaMismatch);
  EXPECT_THROW(migrate(*database, [](const std::string&) {}), SchemaMismatch);
  TestDatabase newer;
  newer->exec("INSERT INTO takt.schema_migrations (version, name, checksum, oldest) VALUES (9999, 'future', '', 9999)");
  EXPECT_THROW(require_current_schema(*newer), SchemaMismatch);
  TestDatabase empty(false);
  EXPECT_THROW(require_current_schema(*empty), SchemaMismatch);
}

constexpr auto kNobody = [](const std::string&) {};

/// Takt's own and those that come later.
std::vector<Migration> with_later(std::vector<Migration> later) {
  std::vector<Migration> all(embedded_migrations().begin(), embedded_migrations().end());
  all.insert(all.end(), later.begin(), later.end());
  return all;
}

TEST(Migrations, Finding15_OneThatGetsNoLockGivesWayAgainAndAgainAndSaysWhoHasIt) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  const auto holder = database->dedicated();
  holder->session().script("SET application_name = 'the report'; BEGIN; SELECT count(*) FROM takt.items");
  const auto later = with_later({{1000, "1000_wider", "ALTER TABLE takt.items ADD COLUMN wider integer;"}});
  // While it tries, others wait no longer than one try, however long the report goes on.
  std::atomic<bool> over{false};
  std::string delayed;
  std::thread application([&] {
    DatabaseSettings settings;
    settings.lock_timeout = 2s;
    Database own(Secret(database.url()), settings);
    try {
      while (!over) own.exec(std::string("SELECT takt.enqueue('demo')"));
    } catch (const std::exception& error) {
      delayed = error.what();
    }
  });
  std::vector<std::string> said;
  const MigrationSettings impatient{100ms, 50ms, 1500ms, 10s};
  std::string fault;
  try {
    migrate(
        *database, [&](const std::string& line) { said.push_back(line); }, {.migrations = later}, impatient);
  } catch (const DatabaseError& error) {
    fault = error.what();
  }
  over = true;
  application.join();
  EXPECT_EQ(delayed, "");
  EXPECT_NE(fault.find("the report"), std::string::npos) << fault;
  EXPECT_NE(fault.find("nothing of it was applied"), std::string::npos) << fault;
  EXPECT_GE(said.size(), 4U) << "several tries";
  EXPECT_EQ(database.number("SELECT max(version) FROM takt.schema_migrations WHERE version > 999"), 0);
  // It gets through as soon as the report is over.
  std::thread end([&] {
    std::this_thread::sleep_for(300ms);
    holder->session().script("COMMIT");
  });
  EXPECT_EQ(migrate(*database, kNobody, {.migrations = later}, impatient).applied, 1);
  end.join();
  EXPECT_EQ(migrate(*database, kNobody, {.migrations = later}, impatient).applied, 0);
}

TEST(Migrations, Finding15_AnIndexIsBuiltBesideTheApplicationOutsideATransaction) {
  TestDatabase database;
  const auto later = with_later({{1000, "1000_index",
                                  "-- Builds an index.\n-- transaction: none\n"
                                  "DROP INDEX CONCURRENTLY IF EXISTS takt.items_later;\n"
                                  "CREATE INDEX CONCURRENTLY items_later ON takt.items (enqueued_at);\n"},
                                 {1001, "1001_broken", "-- transaction: none\nCREATE INDEX CONCURRENTLY broken ON takt.nowhere (x);\n"}});
  EXPECT_THROW(migrate(*database, kNobody, {.migrations = later}), DatabaseError);
  EXPECT_EQ(database.number("SELECT count(*) FROM pg_indexes WHERE indexname = 'items_later'"), 1);
  EXPECT_EQ(database.number("SELECT max(version) FROM takt.schema_migrations"), 1000) << "what failed is not recorded";
}

TEST(Migrations, Finding15_PodsOfTheVersionBeforeStartWhereTheNewSchemaSaysSo) {
  TestDatabase database;
  const int mine = embedded_migrations().back().version;
  const std::string says_so = "-- oldest: " + std::to_string(mine) + "\nCREATE TABLE takt.next (x integer);\n";
  const auto expanding = with_later({{1000, "1000_expands", says_so}});
  EXPECT_EQ(migrate(*database, kNobody, {.migrations = expanding}).version, 1000);
  EXPECT_NO_THROW(require_current_schema(*database));
  EXPECT_EQ(migrate(*database, kNobody).version, 1000) << "an old takt's migrate leaves it alone";
  const auto contracting = with_later({{1000, "1000_expands", says_so}, {1001, "1001_contracts", "DROP TABLE takt.next;\n"}});
  migrate(*database, kNobody, {.migrations = contracting});
  EXPECT_THROW(require_current_schema(*database), SchemaMismatch);
  EXPECT_NO_THROW(require_current_schema(*database, {.migrations = contracting}));
}

/// Takt's files of functions, one of them with more at its end.
std::vector<FunctionFile> with_more(std::string_view file, std::string& text) {
  std::vector<FunctionFile> files(embedded_functions().begin(), embedded_functions().end());
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& one) { return one.name == file; });
  text = std::string(found->sql) + text;
  found->sql = text;
  return files;
}

TEST(Functions, AreAppliedAgainWhereTheyDifferAndNobodyMayCallThemUnasked) {
  TestDatabase database;
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.schema_functions"), static_cast<std::int64_t>(embedded_functions().size()));
  EXPECT_EQ(migrate(*database, kNobody).functions, 0);
  std::string text = "CREATE OR REPLACE FUNCTION takt.later() RETURNS integer LANGUAGE sql AS 'SELECT 7';\n";
  const auto changed = with_more("values", text);
  EXPECT_THROW(require_current_schema(*database, {.functions = changed}), SchemaMismatch);
  const auto report = migrate(*database, kNobody, {.functions = changed});
  EXPECT_EQ(report.functions, 1);
  EXPECT_EQ(report.applied, 0);
  EXPECT_NO_THROW(require_current_schema(*database, {.functions = changed}));
  EXPECT_EQ(database.number("SELECT takt.later()"), 7);
  EXPECT_EQ(database.text("SELECT has_function_privilege('public', 'takt.later()', 'EXECUTE')"), "f");
  EXPECT_EQ(migrate(*database, kNobody, {.functions = changed}).functions, 0);
}

TEST(Functions, AreOneTransactionWithTheMigrationThatTheyBelongTo) {
  TestDatabase database;
  const auto later = with_later({{1000, "1000_next", "CREATE TABLE takt.next (x integer);\n"}});
  std::string text = "CREATE OR REPLACE VIEW takt.nexts AS SELECT y FROM takt.next;\n";
  const auto broken = with_more("views", text);
  EXPECT_THROW(migrate(*database, kNobody, {.migrations = later, .functions = broken}), DatabaseError);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.schema_migrations WHERE version = 1000"), 0);
  text = "CREATE OR REPLACE VIEW takt.nexts AS SELECT x FROM takt.next;\n";
  const auto mended = with_more("views", text);
  const auto report = migrate(*database, kNobody, {.migrations = later, .functions = mended});
  EXPECT_EQ(report.applied, 1);
  EXPECT_EQ(report.functions, 1);
}

TEST(Functions, OfANewerReleaseStayAndServeThisOne) {
  TestDatabase database;
  std::string text = "CREATE OR REPLACE FUNCTION takt.later() RETURNS integer LANGUAGE sql AS 'SELECT 7';\n";
  const auto changed = with_more("values", text);
  migrate(*database, kNobody, {.functions = changed, .release = "99.10.0"});
  EXPECT_EQ(migrate(*database, kNobody).functions, 0) << "an old takt's migrate leaves them alone";
  EXPECT_EQ(migrate(*database, kNobody, {.release = "99.9.1"}).functions, 0) << "releases are numbers";
  EXPECT_NO_THROW(require_current_schema(*database));
  EXPECT_EQ(migrate(*database, kNobody, {.release = "99.10.0"}).functions, 1);
}

TEST(Pool, Finding15_AStatementThatNoLongerFitsIsPreparedAnewOrSaysSo) {
  TestDatabase database;
  constexpr Statement kOne{"one", "SELECT * FROM one()"};
  database->exec(std::string("CREATE FUNCTION one(OUT a integer) LANGUAGE sql AS 'SELECT 1'"));
  EXPECT_EQ(database->exec(kOne).integer(0, 0), 1);
  database->exec(std::string("DROP FUNCTION one()"));
  EXPECT_THROW(database->exec(kOne), SchemaChanged);
  EXPECT_FALSE(database->healthy());
  database->exec(std::string("SELECT 1"));
  EXPECT_TRUE(database->healthy()) << "others are answered";
  EXPECT_FALSE(database->usable()) << "though they are";
  database->exec(std::string("CREATE FUNCTION one(OUT a integer, OUT b integer) LANGUAGE sql AS 'SELECT 1, 2'"));
  EXPECT_EQ(database->exec(kOne).integer(0, 1), 2);
  EXPECT_TRUE(database->healthy());
}

TEST(Pool, Finding13_TimeoutsHoldBehindAPoolerAndBesideOnesOwnOptions) {
  TestDatabase database;
  DatabaseSettings settings;
  settings.statement_timeout = 300ms;
  settings.lock_timeout = 200ms;
  const std::string asked =
      "SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout') || ' ' ||"
      " current_setting('TimeZone') || ' ' || current_setting('search_path')";
  Database own(Secret(database.url() + "?options=-c%20search_path%3Dpg_temp%20-c%20lock_timeout%3D123"), settings);
  EXPECT_EQ(own.exec(asked).text(0, 0), "300ms 123ms UTC pg_temp") << "Takt's, but where one gives another value oneself";

  settings.transaction_pooler = true;
  Database pooled(Secret(database.url()), settings);
  EXPECT_EQ(pooled.exec(asked).text(0, 0).substr(0, 15), "300ms 200ms UTC");
  std::string inside;
  pooled.transaction([&](Session& on) { inside = on.exec(asked, {}).text(0, 0); });
  EXPECT_EQ(inside.substr(0, 15), "300ms 200ms UTC");
  constexpr Statement kSleep{"sleep", "SELECT pg_sleep(5)"};
  try {
    pooled.exec(kSleep);
    ADD_FAILURE() << "it was not ended";
  } catch (const DatabaseError& error) {
    EXPECT_EQ(error.sqlstate(), "57014");
  }
  EXPECT_EQ(pooled.exec(std::string("SELECT 7")).integer(0, 0), 7) << "the connection is fit for use again";
  // What a statement set stays in its transaction: the session is somebody else's next.
  pooled.with_connection([&](DatabaseConnection& connection) {
    connection.outside_transaction("SELECT set_config('takt.outside', current_setting('statement_timeout'), false)");
    EXPECT_EQ(connection.session().exec(std::string("SELECT current_setting('takt.outside')"), {}).text(0, 0), "0");
  });
}

TEST(Pool, OpensAnewAfterTheServerEndedItsConnections) {
  TestDatabase database;
  EXPECT_EQ(database.number("SELECT 1"), 1);
  TestDatabase killer;
  const auto name = database.url().substr(database.url().rfind('/') + 1);
  killer->exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + name + "'");
  EXPECT_TRUE(eventually([&] {
    try {
      return database.number("SELECT 2") == 2;
    } catch (const DatabaseUnavailable&) {
      return false;
    }
  }));
}

TEST(Pool, EndsAWaitForAConnectionThatNeverComes) {
  TestDatabase database;
  DatabaseSettings settings;
  settings.pool = 1;
  settings.connect_timeout = 200ms;
  Database small(Secret(database.url()), settings);
  small.with_connection([&](DatabaseConnection&) { EXPECT_THROW(small.exec(std::string("SELECT 1")), DatabaseUnavailable); });
  EXPECT_NO_THROW(small.exec(std::string("SELECT 1")));
}

TEST(Pool, GoesOnWithWhatItHasWhenItMayOpenNoMore) {
  TestDatabase database;
  const std::string role = "few_" + database.url().substr(database.url().rfind('/') + 1);
  database->exec("CREATE ROLE " + role + " LOGIN PASSWORD 'few' CONNECTION LIMIT 1");
  DatabaseSettings settings;
  settings.pool = 4;
  std::string url = database.url();
  const auto user = url.find("://") + 3;
  Database pool(Secret(url.replace(user, url.find('@') - user, role + ":few")), settings);
  const std::string who = "SELECT pg_backend_pid()";
  const auto first = pool.exec(who).integer(0, 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 5; ++n) EXPECT_EQ(pool.exec("SELECT pg_backend_pid() FROM pg_sleep(0.02)").integer(0, 0), first);
    });
  }
  for (auto& thread : threads) thread.join();
  pool.with_connection([&](DatabaseConnection&) { EXPECT_THROW(pool.exec(who), DatabaseUnavailable) << "the wait has an end"; });
  database->exec("ALTER ROLE " + role + " NOLOGIN");
  database->exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '" + role + "'");
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM pg_stat_activity WHERE usename = '" + role + "'") == 0; }));
  EXPECT_THROW(pool.exec(who), DatabaseUnavailable);
  database->exec("ALTER ROLE " + role + " LOGIN");
  EXPECT_NO_THROW(pool.exec(who)) << "and the lack too";
}

TEST(Pool, AppliesStatementAndLockTimeouts) {
  TestDatabase database;
  DatabaseSettings settings;
  settings.statement_timeout = 100ms;
  settings.lock_timeout = 50ms;
  Database hasty(Secret(database.url()), settings);
  try {
    hasty.exec(std::string("SELECT pg_sleep(10)"));
    FAIL();
  } catch (const DatabaseError& error) {
    EXPECT_TRUE(error.retryable()) << error.what();
  }
}

TEST(Database, TreatsAReadOnlyServerAsAway) {
  TestDatabase database;
  database->exec("ALTER DATABASE " + database.text("SELECT current_database()") + " SET default_transaction_read_only = on");
  Database after(Secret(database.url()), {});
  EXPECT_THROW(after.exec(std::string("CREATE TABLE t (a int)")), DatabaseUnavailable);
}

TEST(Database, RetriesDeadlocksUntilBothSidesAreThrough) {
  TestDatabase database;
  database->exec(std::string("CREATE TABLE pair (id int PRIMARY KEY, n int)"));
  database->exec(std::string("INSERT INTO pair VALUES (1, 0), (2, 0)"));
  std::barrier both_hold_one(2);
  std::atomic<int> tries = 0;
  const auto cross = [&](int first, int second) {
    bool met = false;
    database->transaction([&](Session& on) {
      ++tries;
      on.exec(std::string("UPDATE pair SET n = n + 1 WHERE id = $1"), Params::of(first));
      if (!std::exchange(met, true)) both_hold_one.arrive_and_wait();
      on.exec(std::string("UPDATE pair SET n = n + 1 WHERE id = $1"), Params::of(second));
    });
  };
  std::thread other([&] { cross(2, 1); });
  cross(1, 2);
  other.join();
  EXPECT_EQ(database.number("SELECT sum(n) FROM pair"), 4);
  EXPECT_EQ(tries, 3) << "one of the two was the deadlock's victim, once";
}

TEST(Database, Finding18_TriesNothingAgainAfterTheDeadlineOfItsRound) {
  TestDatabase database;
  database->exec(std::string("CREATE SEQUENCE public.tries"));
  database->exec(
      std::string("CREATE FUNCTION public.fail() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.tries');"
                  " RAISE 'once more' USING ERRCODE = '40001'; END $$"));
  constexpr Statement kFail{"fail", "SELECT public.fail()"};
  const auto tries = [&] {
    database->exec(std::string("SELECT setval('public.tries', 1, false)"));
    EXPECT_THROW(database->exec_retrying(kFail, {}), DatabaseError);
    return database.number("SELECT last_value FROM public.tries");
  };
  {
    const RetryEnd passed(std::chrono::steady_clock::now() - std::chrono::seconds(1));
    EXPECT_EQ(tries(), 1);
  }
  {
    const RetryEnd ahead(std::chrono::steady_clock::now() + std::chrono::minutes(1));
    EXPECT_GT(tries(), 1);
  }
  EXPECT_GT(tries(), 1);
}

TEST(Database, RetriesSerializationFailures) {
  TestDatabase database;
  database->exec(std::string("CREATE TABLE counter (n int)"));
  database->exec(std::string("INSERT INTO counter VALUES (0)"));
  int tries = 0;
  database->transaction([&](Session& on) {
    on.script("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    on.exec(std::string("SELECT n FROM counter"), {});
    if (++tries == 1) std::thread([&] { database->exec(std::string("UPDATE counter SET n = n + 1")); }).join();
    on.exec(std::string("UPDATE counter SET n = n + 1"), {});
  });
  EXPECT_EQ(tries, 2);
  EXPECT_EQ(database.number("SELECT n FROM counter"), 2);
}

TEST(Database, WorksWithoutPreparedStatementsBehindATransactionPooler) {
  TestDatabase database;
  DatabaseSettings settings;
  settings.transaction_pooler = true;
  Database pooled(Secret(database.url()), settings);
  constexpr Statement kStatement{"some_name", "SELECT $1::int + 1"};
  EXPECT_EQ(pooled.exec(kStatement, Params::of(1)).integer(0, 0), 2);
  EXPECT_EQ(pooled.exec(std::string("SELECT count(*) FROM pg_prepared_statements")).integer(0, 0), 0);
}

TEST(Enqueue, ReturnsTheFirstItemWhileItsKeyLives) {
  TestDatabase database;
  database.apply(plain_job("demo", "dedupe_window: 1h"));
  const auto first = database.number("SELECT takt.enqueue('demo', '{\"n\": 1}', key => 'k')");
  EXPECT_EQ(database.number("SELECT takt.enqueue('demo', '{\"n\": 2}', key => 'k')"), first);
  EXPECT_EQ(database.text("SELECT payload->>'n' FROM takt.items"), "1");
  EXPECT_NE(database.number("SELECT takt.enqueue('demo', key => 'other')"), first);
  database->exec(std::string("UPDATE takt.item_keys SET expires_at = now() - interval '1 s' WHERE key = 'k'"));
  EXPECT_NE(database.number("SELECT takt.enqueue('demo', key => 'k')"), first) << "its window is over";
}

TEST(Enqueue, GivesOneItemToManyWhoEnqueueTheSameKeyAtOnce) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 20; ++k) database->exec("SELECT takt.enqueue('demo', key => 'k" + std::to_string(k) + "')");
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 20);
}

TEST(Enqueue, BelongsToTheApplicationsTransaction) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  EXPECT_THROW(database->transaction([](Session& on) {
    on.exec(std::string("SELECT takt.enqueue('demo', key => 'k')"), {});
    throw std::runtime_error("the application changes its mind");
  }),
               std::runtime_error);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys"), 0);
}

TEST(Enqueue, TakesSetsWithAndWithoutKeys) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.enqueue_many('demo', ARRAY['1', '2', '3']::jsonb[])"), 3);
  EXPECT_EQ(database.number("SELECT count(*) FILTER (WHERE created) FROM takt.enqueue_many('demo', ARRAY['1', '2', '3', '4']::jsonb[], "
                            "ARRAY['a', 'b', 'a', ''])"),
            3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 6);
}

TEST(Enqueue, SaysWhatIsWrong) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  for (const char* call :
       {"takt.enqueue('nobody')", "takt.enqueue('demo', priority => 101)", "takt.enqueue('demo', key => repeat('k', 513))",
        "takt.enqueue('demo', to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 20000) n)))"}) {
    EXPECT_THROW(database->exec(std::string("SELECT ") + call), DatabaseError) << call;
  }
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
}

TEST(Enqueue, NeedsNoMoreThanExecuteOnItsFunction) {
  TestDatabase database;
  database.apply(plain_job("demo"));
  const std::string role = "app_" + database.text("SELECT current_database()");
  database->exec("CREATE ROLE " + role);
  database->exec("GRANT USAGE ON SCHEMA takt TO " + role);
  DatabaseSettings settings;
  settings.role = role;
  Database app(Secret(database.url()), settings);
  EXPECT_THROW(app.exec(std::string("SELECT takt.enqueue('demo')")), DatabaseError) << "denied by default";
  database->exec("GRANT EXECUTE ON FUNCTION takt.enqueue TO " + role);
  EXPECT_NO_THROW(app.exec(std::string("SELECT takt.enqueue('demo')")));
  EXPECT_THROW(app.exec(std::string("SELECT * FROM takt.items")), DatabaseError);
  database->exec("REVOKE ALL ON FUNCTION takt.enqueue FROM " + role);
  database->exec("REVOKE ALL ON SCHEMA takt FROM " + role);
  database->exec("DROP ROLE " + role);
}

TEST(Apply, MakesTheDatabaseMatchAndIsSafeToRepeat) {
  TestDatabase database;
  const auto config = parse_config("jobs:\n" + plain_job("a", "schedules: [{name: s, cron: '0 9 * * *'}]") + plain_job("b"), "t");
  EXPECT_EQ(apply_definitions(*database, config, "test", true).size(), 3U);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.jobs"), 0) << "a dry run changes nothing";
  EXPECT_EQ(apply_definitions(*database, config, "test", false).size(), 3U);
  EXPECT_TRUE(apply_definitions(*database, config, "test", false).empty());

  const auto changed = parse_config("jobs:\n" + plain_job("a", "batch_size: 7, schedules: [{name: s, cron: '0 10 * * *'}]"), "t");
  const auto changes = apply_definitions(*database, changed, "test", false, Removal::prune);
  ASSERT_EQ(changes.size(), 3U);
  EXPECT_EQ(changes[0].detail, "batch_size: 100 → 7");
  EXPECT_EQ(database.text("SELECT to_char(next_due AT TIME ZONE 'UTC', 'HH24:MI') FROM takt.schedules"), "10:00");
  EXPECT_EQ(database.text("SELECT name FROM takt.jobs WHERE removed_at IS NOT NULL"), "b");
  EXPECT_GT(database.number("SELECT count(*) FROM takt.audit"), 0);
}

TEST(Apply, LeavesSchedulesMadeByTheApiAlone) {
  TestDatabase database;
  const auto config = database.apply(plain_job("a"));
  database->exec(std::string(
      "INSERT INTO takt.schedules (job_id, name, cron, time_zone, misfire, misfire_after, misfire_limit, misfire_max_age, jitter, source) "
      "SELECT id, 'theirs', '@daily', 'UTC', 'once', '60 s', 1, '1 d', '0', 'api' FROM takt.jobs"));
  EXPECT_TRUE(apply_definitions(*database, config, "test", false).empty());
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.schedules"), 1);
}

TEST(Prepared, APlanThatWasMadeForAnEmptyTableReadsByKeyWhenItIsFull) {
  constexpr Statement kByKeys{"by_keys", "SELECT count(*) FROM takt.ticks WHERE id = ANY ($1::text[])"};
  const auto keys = Params::of(std::vector<std::string>{"tick-1", "tick-2"});
  TestDatabase database;
  const auto connection = database->dedicated();
  auto& on = connection->session();
  on.script("VACUUM ANALYZE takt.ticks");
  // PostgreSQL decides after five whether it keeps one plan for all values.
  for (int i = 0; i < 8; ++i) EXPECT_EQ(on.exec(kByKeys, keys).integer(0, 0), 0);
  on.script("INSERT INTO takt.ticks (id, job_id, source, due_at) SELECT 'tick-' || n, 1, 'due', now() FROM generate_series(1, 3000) n");
  on.script("BEGIN");
  EXPECT_EQ(on.exec(kByKeys, keys).integer(0, 0), 2);
  EXPECT_EQ(on.script("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'ticks'").integer(0, 0), 0);
  on.script("ROLLBACK");
}

/// Lies between a client and PostgreSQL. What is cut off gets a last notice, as from a server that stops at once, and a reset.
class Relay {
 public:
  explicit Relay(const std::string& url) : url_(url), server_([this](int client) { relay(client); }) {}
  [[nodiscard]] std::string url() const { return url_ + "?port=" + std::to_string(port_of(server_.url())); }
  void cut_off() {
    cut_ = true;
    EXPECT_TRUE(eventually([&] { return closed_.load(); }));
  }

 private:
  static int port_of(const std::string& url) { return std::stoi(url.substr(url.rfind(':') + 1)); }

  void relay(int client) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port_of(url_)));
    const int far = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    constexpr int kOn = 1;
    ::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &kOn, sizeof kOn);  // else the notice waits, and goes with the reset
    ASSERT_EQ(::connect(far, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    std::array<pollfd, 2> ends{{{client, POLLIN, 0}, {far, POLLIN, 0}}};
    while (!cut_ && !server_.stopping()) {
      if (::poll(ends.data(), ends.size(), 10) <= 0) continue;
      if (ends[0].revents != 0 && !pass(client, far)) break;
      if (ends[1].revents != 0 && !pass(far, client)) break;
    }
    if (cut_) {
      const auto notice = "SWARNING\0C57P01\0Mterminating connection due to immediate shutdown command\0\0"s;
      MisbehavingServer::send_all(client, "N\0\0\0"s + static_cast<char>(notice.size() + 4) + notice);
      const sockaddr nowhere{AF_UNSPEC, {}};
      ::connect(client, &nowhere, sizeof nowhere);  // a reset, at once
    }
    ::close(far);
    closed_ = true;
  }
  static bool pass(int from, int to) {
    std::array<char, 8192> bytes{};
    const auto got = ::recv(from, bytes.data(), bytes.size(), 0);
    if (got > 0) MisbehavingServer::send_all(to, std::string(bytes.data(), static_cast<std::size_t>(got)));
    return got > 0;
  }

  std::string url_;
  std::atomic<bool> cut_{false}, closed_{false};
  MisbehavingServer server_;
};

TEST(Connection, Finding28_OneThatBreaksBetweenANoticeAndTheStatementIsAnOutageAndNoFaultOfTheStatement) {
  TestDatabase database(false);
  Relay relay(database.url());
  Database behind(Secret(relay.url()), {});
  const auto begin_and_break = [&](Session& session) {
    EXPECT_EQ(session.exec(std::string("SELECT 1"), {}).integer(0, 0), 1);
    relay.cut_off();
    session.exec(std::string("SELECT 1"), {});
  };
  EXPECT_THROW(behind.transaction(begin_and_break), DatabaseUnavailable);
}

TEST(Pool, Finding12_PartitionsThatAreMissingAreALineASecondAndNotOneAStatement) {
  TestDatabase database;
  database->exec(std::string("CREATE TABLE nowhere (n integer) PARTITION BY RANGE (n)"));
  const auto began = std::chrono::steady_clock::now();
  testing::internal::CaptureStderr();
  for (int i = 0; i < 20; ++i) {
    EXPECT_THROW(database->exec_retrying(Statement{"nowhere", "INSERT INTO nowhere VALUES (1)"}, {}), DatabaseError);
  }
  const auto log = testing::internal::GetCapturedStderr();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - began).count();
  std::int64_t lines = 0;
  for (auto at = log.find("partitions missing"); at != std::string::npos; at = log.find("partitions missing", at + 1)) ++lines;
  EXPECT_GE(lines, 1);
  EXPECT_LE(lines, seconds + 1) << log;
}

}  // namespace
}  // namespace takt
