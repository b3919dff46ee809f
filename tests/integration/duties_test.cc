// The dispatcher's duties beside the ticking: history's partitions, and what of one job must not stop the others.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "core/config/apply.h"
#include "dispatcher/retention.h"
#include "dispatcher/schedule_scan.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/runs.h"
#include "worker/claim.h"
#include "worker/settle.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct DutiesTest : testing::Test {
  TestDatabase database;
  Metrics metrics;
  FakeClock clock;
  Leadership leadership{*database, 60s, clock};

  Term lead() {
    EXPECT_TRUE(leadership.try_lead());
    return leadership.term();
  }
  /// As after days in which nobody made any.
  void drop_partitions_from(const std::string& time) {
    const auto names = database.text("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE until > " + time);
    database->exec("DROP TABLE " + names);
  }
  std::int64_t partitions() { return database.number("SELECT count(*) FROM takt.history_partitions"); }
  Database with_lock_timeout(Duration time) {
    DatabaseSettings settings;
    settings.lock_timeout = time;
    return Database(Secret(database.url()), settings);
  }
};

TEST_F(DutiesTest, Finding12_WhoNeedsAPartitionThatNobodyMadeMakesIt) {
  database.apply(plain_job("demo", "max_attempts: 1"));
  const auto job = database.job("demo");
  database->exec(std::string("SELECT takt.enqueue('demo') FROM generate_series(1, 3)"));
  drop_partitions_from("now() - interval '2 days'");
  auto claim = claim_batch(*database, {job, "due:1", Timestamp(), "due", 1, "w", 3, false});
  ASSERT_EQ(claim.items.size(), 3U);
  EXPECT_GT(database.number("SELECT extract(epoch FROM min(until) - now())::bigint FROM (SELECT max(until) AS until FROM "
                            "takt.history_partitions GROUP BY parent) p"),
            86400);
  // Those of what failed and what ended, in a statement that is tried once.
  database->exec("DROP TABLE " +
                 database.text("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE parent <> 'runs'"));
  auto run = ended("due:1", 1, job, claim);
  for (std::size_t i = 0; i < run.items.size(); ++i) run.settlements[i].state = ItemState::dead;
  for (auto& result : run.results) result.item_class = ItemClass::error;
  settle_run(*database, run);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ended_items"), 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts"), 3);
}

TEST_F(DutiesTest, Finding12_WhoFindsPartitionsBeingMadeWaitsForThemAsForAnyLock) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  drop_partitions_from("now() - interval '2 days'");
  const auto maker = database->dedicated();
  maker->session().script("BEGIN; SELECT takt.ensure_partitions()");
  const std::jthread made([&] {
    EXPECT_TRUE(eventually([&] {
      return database.number(
                 "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                 " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") > 0;
    }));
    maker->session().script("SELECT pg_sleep(0.3); COMMIT");  // longer than the making of one waits for a lock
  });
  EXPECT_EQ(claim_batch(*database, {job, "due:1", Timestamp(), "due", 1, "w", 1, false}).outcome, ClaimOutcome::claimed);
}

// The clock of the server was days ahead and is put right, or somebody dropped a partition while others were made.
TEST_F(DutiesTest, Finding12_APartitionThatIsMissingBeforeOthersIsMade) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  const auto days = [&] {
    return database.text(
        "SELECT string_agg(until::date - since::date || '@' || since::date - now()::date, ' ' ORDER BY since) FROM takt.history_partitions"
        " WHERE parent = 'runs'");
  };
  ASSERT_EQ(days(), "1@-1 1@0 1@1 1@2 1@3");
  database->exec("DROP TABLE " +
                 database.text("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE since <= now()"));
  EXPECT_EQ(claim_batch(*database, {job, "due:1", Timestamp(), "due", 1, "w", 1, false}).outcome, ClaimOutcome::claimed);
  EXPECT_EQ(days(), "1@-1 1@0 1@1 1@2 1@3");
  database->exec(
      "DROP TABLE " +
      database.text("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE until <= now() + interval '1 day'"));
  ensure_partitions(*database, 720h);
  EXPECT_EQ(days(), "2@-1 1@1 1@2 1@3") << "up to the next one";
  const auto today = database.text("SELECT child FROM takt.history_partitions WHERE parent = 'runs' ORDER BY since LIMIT 1");
  database->exec("ALTER TABLE takt.runs DETACH PARTITION takt." + today);
  EXPECT_EQ(database.number("SELECT takt.ensure_partitions()"), 2) << "though the name is taken";
  EXPECT_EQ(days(), "1@-1 1@0 1@1 1@2 1@3");
  EXPECT_EQ(database.number("SELECT takt.ensure_partitions()"), 0);
}

TEST_F(DutiesTest, Finding13_PartitionsComeAndGoBesideAReaderAndNobodyWaits) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  database->exec(std::string("SELECT takt.enqueue('demo') FROM generate_series(1, 2000)"));
  drop_partitions_from("now() + interval '2 days'");
  database->exec(
      std::string("CREATE TABLE takt.runs_20200101 PARTITION OF takt.runs FOR VALUES FROM ('2020-01-01+00') TO ('2020-01-02+00')"));
  const auto reader = database->dedicated();
  reader->session().script("BEGIN; SELECT count(*) FROM takt.runs");

  std::atomic<bool> over{false};
  std::atomic<int> claimed{0};
  std::string waited;
  std::thread worker([&] {
    auto impatient = with_lock_timeout(100ms);
    try {
      for (std::int64_t run = 1; !over || run < 3; ++run) {
        const std::string tick = "due:" + std::to_string(run);
        claimed += static_cast<int>(claim_batch(impatient, {job, tick, Timestamp(), "due", run, "w", 1, false}).items.size());
      }
    } catch (const std::exception& error) {
      waited = error.what();
    }
  });
  const auto before = partitions();
  EXPECT_GT(ensure_partitions(*database, 720h),
            from_unix_us(database.number("SELECT (extract(epoch FROM now() + interval '3 days') * 1000000)::bigint")));
  EXPECT_GT(partitions(), before);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(drop_old_partitions(*database, 720h).in_use, "runs_20200101") << "it is being read";
  over = true;
  worker.join();
  EXPECT_EQ(waited, "");
  EXPECT_GE(claimed.load(), 3);

  reader->session().script("COMMIT");
  EXPECT_EQ(drop_old_partitions(*database, 720h).count, 1);
}

TEST_F(DutiesTest, Finding37_SchedulesThatAreNotUnderstoodDelayNoOthers) {
  std::string schedules = "schedules: [{name: good, cron: '* * * * * *'}";
  for (int i = 0; i < 300; ++i) schedules += ", {name: bad" + std::to_string(i) + ", cron: '* * * * * *'}";
  database.apply(plain_job("demo", schedules + "]"));
  database->exec(
      std::string("UPDATE takt.schedules SET cron = 'every now and then', next_due = now() - interval '1 h',"
                  " next_fire = now() - interval '1 h' WHERE name <> 'good'"));
  database->exec(std::string("UPDATE takt.schedules SET time_zone = 'Atlantis/Capital', cron = '* * * * * *' WHERE name = 'bad7'"));
  database->exec(std::string("UPDATE takt.schedules SET next_due = date_trunc('second', now()), next_fire = now() WHERE name = 'good'"));
  const Term term = lead();
  ScheduleScan scan(*database, metrics);
  std::size_t ticks = 0;
  for (int round = 0; round < 2; ++round) ticks += scan.run_once(term, 200ms).ticks.size();
  EXPECT_GE(ticks, 1U) << "301 schedules are two rounds";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.schedules WHERE fault IS NOT NULL AND next_fire > now() + interval '59 min'"), 300);
  EXPECT_NE(database.text("SELECT fault FROM takt.schedules WHERE name = 'bad7'").find("Atlantis"), std::string::npos);
  // Mended by hand, it is tried again, and is no longer faulty.
  database->exec(std::string("UPDATE takt.schedules SET cron = '* * * * * *', next_fire = now() WHERE name = 'bad1'"));
  scan.run_once(term, 200ms);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.schedules WHERE name = 'bad1' AND fault IS NULL"), 1);
}

TEST_F(DutiesTest, Finding18_APruneThatFailsKeepsNoOtherFromItsTurn) {
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at, finished_at)"
                  " SELECT 't' || n, 1, 'due', now(), now() - interval '9 days', now() - interval '9 days' FROM generate_series(1, 9) n"));
  database->exec(std::string("INSERT INTO takt.item_keys SELECT 1, 'k' || n, n, now() - interval '1 s' FROM generate_series(1, 9) n"));
  database->exec(
      std::string("INSERT INTO takt.dead_letters (id, kind, job, reason, error, died_at)"
                  " SELECT 'd' || n, 'item', 'demo', 'max_attempts', '', now() - interval '90 days' FROM generate_series(1, 9) n"));
  database->exec(
      std::string("INSERT INTO takt.audit (at, who, origin, action, subject)"
                  " SELECT now() - interval '900 days', 'ann', 'command line', 'dlq replay', 'd' FROM generate_series(1, 9)"));
  const auto left = [&] {
    return database.text(
        "SELECT concat_ws(' ', (SELECT count(*) FROM takt.ticks), (SELECT count(*) FROM takt.item_keys),"
        " (SELECT count(*) FROM takt.dead_letters), (SELECT count(*) FROM takt.audit))");
  };
  const RetentionSettings settings{720h, 72h, 720h, std::chrono::days(365)};
  database->with_connection([](DatabaseConnection& connection) {
    connection.session().script(
        R"(CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '% is broken', TG_TABLE_NAME; END $$;
      CREATE TRIGGER broken BEFORE DELETE ON takt.ticks FOR EACH ROW EXECUTE FUNCTION refuse();
      CREATE TRIGGER broken BEFORE DELETE ON takt.audit FOR EACH ROW EXECUTE FUNCTION refuse())");
  });
  try {
    prune_once(*database, settings, 5);
    ADD_FAILURE() << "a failure must be told";
  } catch (const DatabaseError& error) {
    EXPECT_NE(std::string(error.what()).find("ticks is broken"), std::string::npos) << "the first: " << error.what();
  }
  EXPECT_EQ(left(), "9 4 4 9");
  database->exec(std::string("DROP TRIGGER broken ON takt.audit"));
  for (const auto* then : {"9 0 0 4", "9 0 0 0"}) {
    EXPECT_THROW(prune_once(*database, settings, 5), DatabaseError);
    EXPECT_EQ(left(), then);
  }
  database->exec(std::string("DROP TRIGGER broken ON takt.ticks"));
  EXPECT_TRUE(prune_once(*database, settings, 5).more(5));
  EXPECT_EQ(left(), "4 0 0 0");
}

}  // namespace
}  // namespace takt
