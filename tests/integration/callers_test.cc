// What applications may hand over through SQL: every argument of takt.enqueue and takt.enqueue_many at its edges, in transactions
// of every kind. Refused with a sentence, or taken and carried; nobody else is held up.
#include <gtest/gtest.h>

#include <thread>

#include "core/db/migrator.h"
#include "dispatcher/due_scan.h"
#include "dispatcher/gauges.h"
#include "dispatcher/leadership.h"
#include "dlq/operations.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/runs.h"
#include "worker/claim.h"
#include "worker/settle.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

/// An application's connection, in a transaction or not.
class Application {
 public:
  explicit Application(TestDatabase& database) : connection_(database->dedicated()) {}
  Rows run(const std::string& sql) { return connection_->session().script(sql); }
  std::int64_t number(const std::string& sql) { return run(sql).integer(0, 0); }
  /// The SQLSTATE and the words of a refusal; empty if there was none.
  std::string refused(const std::string& sql) {
    try {
      run(sql);
    } catch (const DatabaseError& error) {
      return error.sqlstate() + " " + error.what();
    }
    return "";
  }

 private:
  std::unique_ptr<DatabaseConnection> connection_;
};

struct CallersTest : testing::Test {
  TestDatabase database;
  Metrics metrics;
  FakeClock clock;
  Leadership leadership{*database, 60s, clock};
  DueScan due_scan{*database, clock, 3};
  std::int64_t runs = 0;

  std::int64_t items(const std::string& where = "true") { return database.number("SELECT count(*) FROM takt.items WHERE " + where); }
  /// In this database alone: pg_locks has those of every test beside this one, too.
  std::int64_t advisory_locks(const std::string& where = "true") {
    return database.number(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
        " WHERE datname = current_database()) AND " +
        where);
  }
  /// `sql` is refused, and the refusal has these words.
  void refuses(const std::string& sql, const std::string& words) {
    const auto refusal = Application(database).refused("SELECT " + sql);
    EXPECT_NE(refusal.find(words), std::string::npos) << sql << ": " << refusal;
  }
  void accepts(const std::string& sql) { EXPECT_EQ(Application(database).refused("SELECT " + sql), "") << sql; }
  Claim claim(const std::string& job, int batch = 100) {
    ++runs;
    const auto found = database.job(job);
    return claim_batch(*database, {found, "due:" + std::to_string(runs), SystemClock().now(), "due", runs, "test-worker", batch});
  }
  void settle(const std::string& job, const Claim& claim) {
    const auto found = database.job(job);
    EXPECT_TRUE(settle_run(*database, ended("due:" + std::to_string(runs), runs, found, claim)).recorded);
  }
  /// Enqueues an item with the key and ends it.
  void end_item_with_key(const std::string& key) {
    database->exec("SELECT takt.enqueue('demo', key => '" + key + "')");
    settle("demo", claim("demo"));
  }
};

// C1, finding 1 -------------------------------------------------------------------------------------------------------------------

TEST_F(CallersTest, Finding1_ARunAtThatIsNoneOrLongPastIsNowAndOneThatIsNeverIsRefused) {
  database.apply(plain_job("demo"));
  for (const std::string at : {"NULL", "'-infinity'", "'0001-01-01'", "'1969-12-31 23:59:59.999999+00'", "'4713-01-01 BC'"}) {
    accepts("takt.enqueue('demo', run_at => " + at + ")");
    accepts("takt.enqueue('demo', key => $$" + at + "$$, run_at => " + at + ")");
    if (at != "NULL") accepts("* FROM takt.enqueue_many('demo', ARRAY['{}']::jsonb[], run_ats => ARRAY[" + at + "]::timestamptz[])");
  }
  EXPECT_EQ(items(), 14);
  EXPECT_EQ(items("run_at BETWEEN now() - interval '1 min' AND now()"), 14);
  for (const std::string at : {"'infinity'", "'294276-12-31'", "'10000-01-01 00:00:00+00'"}) {
    refuses("takt.enqueue('demo', run_at => " + at + ")", "after the year 9999");
    refuses("takt.enqueue('demo', key => 'k', run_at => " + at + ")", "after the year 9999");
    refuses("* FROM takt.enqueue_many('demo', ARRAY['{}', '{}']::jsonb[], run_ats => ARRAY['epoch', " + at + "]::timestamptz[])",
            "run_at of element 2 is");
  }
  EXPECT_EQ(items(), 14);
  for (const std::string at : {"'1970-01-01 00:00:00+00'", "'9999-12-31 23:59:59.999999+00'"}) {
    accepts("takt.enqueue('demo', run_at => " + at + ")");
    accepts("takt.enqueue('demo', key => $$" + at + "$$, run_at => " + at + ")");
    EXPECT_EQ(items("run_at = " + at), 2) << "as it was given";
  }
  for (const std::string style : {"SQL, DMY", "German", "Postgres, MDY"}) {
    Application abroad(database);
    abroad.run("SET datestyle = '" + style + "'; SET timezone = 'Asia/Kolkata'");
    EXPECT_EQ(abroad.refused("SELECT takt.enqueue('demo', run_at => '9999-12-31 23:59:59+00')"), "");
    EXPECT_NE(abroad.refused("SELECT takt.enqueue('demo', run_at => 'infinity')"), "");
  }
}

// As an older version, or somebody by hand, may have left them.
TEST_F(CallersTest, C1_Finding1_AnItemWithAnyTimeIsScannedLookedAtCountedAndClaimed) {
  database.apply(plain_job("a") + plain_job("b") + plain_job("c") + plain_job("d") + plain_job("e"));
  ASSERT_TRUE(leadership.try_lead());
  database->exec(std::string(
      "INSERT INTO takt.items (job_id, run_at, enqueued_at) SELECT j.id, t.at, '-infinity'"
      "  FROM (VALUES ('a', '-infinity'::timestamptz), ('b', '0001-01-01'), ('c', 'infinity'), ('d', '294276-12-31')) t(job, at)"
      "  JOIN takt.jobs j ON j.name = t.job"));
  database->exec(std::string("SELECT takt.enqueue('e', run_at => now() + interval '1 h')"));
  database->exec(std::string("DELETE FROM takt.items WHERE run_at > now() AND job_id = 5"));
  const auto scanned = due_scan.run_once(leadership.term());
  ASSERT_EQ(scanned.ticks.size(), 2U);
  for (const auto& tick : scanned.ticks) EXPECT_EQ(to_unix_us(tick.due_at), 0) << "a tick's time is one that a worker takes";
  EXPECT_FALSE(scanned.next_in.has_value() && *scanned.next_in < 24h);
  DueScan fresh{*database, clock, 3};
  EXPECT_EQ(fresh.look_at(leadership.term(), {"a", "b", "c"}).size(), 2U);
  metrics.leader_gauges(read_gauges(*database));
  const auto peeked = peek_due_items(*database, database.job("a").id, 10);
  ASSERT_EQ(peeked.size(), 1U);
  for (const std::string job : {"a", "b"}) {
    const auto taken = claim(job);
    ASSERT_EQ(taken.items.size(), 1U);
    EXPECT_EQ(recover_claim(*database, "due:" + std::to_string(runs), runs).items.size(), 1U);
    settle(job, taken);
  }
  database->exec(std::string("SELECT takt.enqueue('e')"));
  EXPECT_EQ(due_scan.run_once(leadership.term()).ticks.size(), 1U) << "and others are woken beside them";
}

// C3, C4, findings 2 and 3 ----------------------------------------------------------------------------------------------------------

TEST_F(CallersTest, C3_Finding3_AKeyedEnqueueIsStoredThoughItsTransactionBeganBeforeTheItemEnded) {
  database.apply(plain_job("demo"));
  Application old(database);
  old.run("BEGIN; SELECT 1");
  end_item_with_key("k");
  const auto before = items();
  old.run("SELECT takt.enqueue('demo', '{\"n\": 2}', 'k')");
  old.run("SELECT * FROM takt.enqueue_many('demo', ARRAY['{}', '{}']::jsonb[], ARRAY['k', 'other'])");
  old.run("COMMIT");
  EXPECT_EQ(items() - before, 2) << "k once, other once";
  EXPECT_EQ(items("payload->>'n' = '2'"), 1);
}

TEST_F(CallersTest, C3_Finding3_AnOldSnapshotSwallowsNothingEither) {
  database.apply(plain_job("demo"));
  database->exec(std::string("SELECT takt.enqueue('demo', key => 'live')"));
  for (const std::string level : {"REPEATABLE READ", "SERIALIZABLE"}) {
    database->exec(std::string("SELECT takt.enqueue('demo', key => 'k', priority => -1)"));
    Application old(database);
    old.run("BEGIN ISOLATION LEVEL " + level + "; SELECT 1");
    settle("demo", claim("demo", 1));
    EXPECT_EQ(old.refused("SELECT takt.enqueue('demo', key => 'k')").substr(0, 5), "40001") << "to be tried again";
    old.run("ROLLBACK");
    old.run("BEGIN ISOLATION LEVEL " + level);
    old.run("SELECT takt.enqueue('demo', key => 'k', run_at => now() + interval '1 h')");
    EXPECT_EQ(old.number("SELECT takt.enqueue('demo', key => 'live')"), 1) << "one that lives is found";
    old.run("COMMIT");
    EXPECT_EQ(items("key = 'k'"), 1);
    database->exec(std::string("DELETE FROM takt.items WHERE key = 'k'"));
    database->exec(std::string("DELETE FROM takt.item_keys WHERE key = 'k'"));
  }
}

TEST_F(CallersTest, Finding3_AReplayTakesAKeyThatWasGivenUpMeanwhile) {
  database.apply(plain_job("demo", "max_attempts: 1"));
  database->exec(
      std::string("INSERT INTO takt.dead_letters (id, kind, job, reason, error, item_id, key, payload, died_at)"
                  " VALUES ('item-7-0', 'item', 'demo', 'http_500', '', 7, 'k', '{}', now())"));
  Application operators(database);
  operators.run("BEGIN; SELECT 1");
  end_item_with_key("k");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NOT NULL"), 1);
  EXPECT_EQ(replay_letters(*database, {"item-7-0"}, "test").items, 1);
}

TEST_F(CallersTest, C4_Finding2_ADuplicateInAnOpenTransactionNeitherLocksNorWrites) {
  database.apply(plain_job("demo"));
  database->exec(std::string("SELECT takt.enqueue('demo', key => 'k' || n) FROM generate_series(1, 10) n"));
  const auto taken = claim("demo");
  Application open(database), snapshot(database);
  open.run("BEGIN");
  snapshot.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
  for (auto* application : {&open, &snapshot}) {
    EXPECT_EQ(application->number("SELECT takt.enqueue('demo', key => 'k7')"), 7);
    EXPECT_EQ(application->number(
                  "SELECT sum(item_id) FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[3]), ARRAY['k1', 'k2', 'k1'])"),
              4);
    EXPECT_EQ(application->number("SELECT count(*) FROM takt.item_keys WHERE xmax <> 0"), 0);
  }
  database->exec(std::string("SET lock_timeout = '2s'"));
  const auto began = std::chrono::steady_clock::now();
  settle("demo", taken);
  EXPECT_LT(std::chrono::steady_clock::now() - began, 1s);
  EXPECT_NE(open.number("SELECT takt.enqueue('demo', '{}', 'k7')"), 7) << "its item has ended, so this is another";
  open.run("COMMIT");
  snapshot.run("COMMIT");
  EXPECT_EQ(items(), 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 2"), 10);
}

TEST_F(CallersTest, Finding2_TwoWhoTakeOverAKeyAtOnceGetOneItemAndTheSecondHoldsNothing) {
  database.apply(plain_job("demo"));
  for (const std::string enqueue : {"SELECT takt.enqueue('demo', '{}', 'k')",
                                    "SELECT item_id FROM takt.enqueue_many('demo', ARRAY['{}', '{}']::jsonb[], ARRAY['k', 'k'])"}) {
    for (const bool rolled_back : {false, true}) {
      end_item_with_key("k");
      Application first(database), second(database);
      first.run("BEGIN");
      const auto item = first.number(enqueue);
      second.run("BEGIN");
      std::int64_t other = 0;
      std::thread waiting([&] { other = second.number(enqueue); });
      EXPECT_TRUE(eventually([&] {
        return database.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0;
      }));
      first.run(rolled_back ? "ROLLBACK" : "COMMIT");
      waiting.join();
      EXPECT_EQ(other == item, !rolled_back);
      if (!rolled_back) {
        EXPECT_EQ(claim("demo").items.size(), 1U);
        const auto again = recover_claim(*database, "due:" + std::to_string(runs), runs);
        settle("demo", again);  // while the second is still open
      }
      second.run("COMMIT");
      database->exec(std::string("DELETE FROM takt.items"));
      database->exec(std::string("DELETE FROM takt.item_keys"));
    }
  }
}

// Between the moment that a statement's snapshot is taken and the moment that it locks the row, another takes the key over and
// commits. A row-level policy stands still in that moment; with no policy, it lasts for some microseconds.
TEST_F(CallersTest, C4_Finding2_WhoIsTooLateByAMomentToTakeOverAKeyHoldsNothingEither) {
  database.apply(plain_job("demo"));
  end_item_with_key("k");
  const std::string role = "late_" + database.text("SELECT current_database()");
  Application owner(database);
  owner.run(
      "CREATE SEQUENCE public.looks; CREATE FUNCTION public.stand_still() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
      " IF nextval('public.looks') = 2 THEN PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); END IF;"
      " RETURN true; END $$;"
      " CREATE ROLE " +
      role + "; GRANT USAGE ON SCHEMA takt, public TO " + role + "; GRANT ALL ON takt.item_keys, public.looks TO " + role +
      "; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA takt, public TO " + role +
      "; ALTER TABLE takt.item_keys ENABLE ROW LEVEL SECURITY; CREATE POLICY late ON takt.item_keys TO " + role +
      " USING (public.stand_still()) WITH CHECK (true)");
  Application gate(database), late(database);
  gate.run("SELECT pg_advisory_lock(77)");
  late.run("BEGIN; SET LOCAL ROLE " + role);
  std::int64_t holder = 0;
  std::thread waiting([&] { holder = late.number("SELECT takt.own_key(1, 'k', 4711)"); });
  EXPECT_TRUE(eventually([&] { return advisory_locks("NOT granted") == 1; }));
  const auto item = database.number("SELECT takt.enqueue('demo', key => 'k')");
  gate.run("SELECT pg_advisory_unlock(77)");
  waiting.join();
  EXPECT_EQ(holder, item);
  EXPECT_EQ(owner.refused("SELECT 1 FROM takt.item_keys WHERE key = 'k' FOR UPDATE NOWAIT"), "");
  settle("demo", claim("demo"));  // while the one who was late is still open
  late.run("COMMIT");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NULL"), 0);
  owner.run("DROP OWNED BY " + role + "; DROP ROLE " + role);
}

TEST_F(CallersTest, Finding2_AKeyWithinItsWindowIsHeldAndAfterItFree) {
  database.apply(plain_job("demo", "dedupe_window: 1h"));
  end_item_with_key("k");
  const auto first = database.number("SELECT item_id FROM takt.item_keys");
  EXPECT_EQ(database.number("SELECT takt.enqueue('demo', key => 'k')"), first);
  EXPECT_EQ(database.text("SELECT item_id || ' ' || created FROM takt.enqueue_many('demo', ARRAY['{}']::jsonb[], ARRAY['k'])"),
            std::to_string(first) + " false");
  EXPECT_EQ(items(), 0);
  database->exec(std::string("UPDATE takt.item_keys SET expires_at = now() - interval '1 ms'"));
  EXPECT_EQ(database.text("SELECT string_agg(ordinal || ' ' || (item_id > " + std::to_string(first) +
                          ") || ' ' || created, ', ' ORDER BY ordinal)"
                          " FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[4]), ARRAY['k', NULL, 'k', 'new'])"),
            "1 true true, 2 true true, 3 true false, 4 true true")
      << "the first wins, also inside one call";
  EXPECT_EQ(items(), 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NULL"), 2);
}

TEST_F(CallersTest, Finding2_KeysThatEndAndArePrunedUnderManyEnqueuersAreNeverLostOrDoubled) {
  database.apply(plain_job("demo"));
  std::atomic<bool> stop = false;
  std::atomic<int> created = 0;
  std::vector<std::thread> threads;
  threads.emplace_back([&] {  // what workers and the retention do, as fast as they can
    while (!stop) {
      database->exec(
          std::string("WITH gone AS (DELETE FROM takt.items RETURNING id)"
                      " UPDATE takt.item_keys k SET expires_at = clock_timestamp() FROM gone WHERE k.item_id = gone.id"));
      database->exec(
          std::string("DELETE FROM takt.item_keys WHERE (job_id, key) IN ("
                      "SELECT job_id, key FROM takt.item_keys WHERE expires_at < now() FOR UPDATE SKIP LOCKED)"));
    }
  });
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Application application(database);
      for (int i = 0; i < 150; ++i) {
        try {
          application.run("BEGIN ISOLATION LEVEL READ COMMITTED; SAVEPOINT s; SELECT takt.enqueue('demo', key => 'k1')");
          if (t == 0) application.run("ROLLBACK TO s");
          const auto more = application.number(
              "SELECT count(*) FILTER (WHERE created)"
              " FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[3]), ARRAY['k1', 'k2', 'k3'])");
          application.run("COMMIT");
          created += static_cast<int>(more);
        } catch (const DatabaseError& error) {
          EXPECT_EQ(error.sqlstate(), "40P01") << error.what();  // a key that was pruned between two statements is taken out of order
          application.run("ROLLBACK");
        }
      }
    });
  }
  for (std::size_t i = 1; i < threads.size(); ++i) threads[i].join();
  stop = true;
  threads.front().join();
  EXPECT_GT(created, 30);
  EXPECT_EQ(items(), database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NULL")) << "one item a live key";
}

// C2, finding 8 -------------------------------------------------------------------------------------------------------------------

TEST_F(CallersTest, C2_Finding8_APayloadIsMeasuredAsTextWhateverItTakesInATable) {
  database.apply(plain_job("demo"));
  database->exec(std::string("CREATE TABLE big AS SELECT jsonb_build_object('a', repeat('x', 40000000)) p"));
  database->exec(std::string("CREATE TABLE numbers AS SELECT jsonb_agg(1e131071::numeric) p FROM generate_series(1, 8300)"));
  database->exec(std::string("CREATE TABLE few AS SELECT jsonb_agg(1e131071::numeric) p FROM generate_series(1, 8)"));
  database->exec(std::string("CREATE TABLE pairs AS SELECT jsonb_agg(1) p FROM generate_series(1, 100000)"));
  const std::string controls = "to_jsonb(repeat(chr(1), 100000))", spaces = "to_jsonb(repeat(' ', 524270))";
  for (const std::string payload : {"(SELECT p FROM big)", "(SELECT p FROM few)", "(SELECT p FROM pairs)",
                                    "(SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 8))",
                                    "(SELECT jsonb_agg(1) FROM generate_series(1, 100000))", controls.c_str()}) {
    refuses("takt.enqueue('demo', " + payload + ")", "more than 524288");
    refuses("takt.enqueue('demo', " + payload + ", 'k')", "more than 524288");
    refuses("* FROM takt.enqueue_many('demo', ARRAY['{}', " + payload + "])", "payload of element 2 has ");
  }
  refuses("takt.enqueue('demo', (SELECT p FROM numbers))", "payload has 1 GiB of bytes, more than 524288");
  EXPECT_EQ(items(), 0);
  database->exec(std::string("CREATE TABLE fine AS SELECT jsonb_build_object('a', repeat('x', 500000)) p"));
  for (const std::string payload : {"(SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 7))", "(SELECT p FROM fine)",
                                    spaces.c_str(), "'\"\\u0001\\ud83d\\ude00\"'::jsonb", "'null'::jsonb", "'[]'::jsonb"}) {
    accepts("takt.enqueue('demo', " + payload + ")");
    accepts("* FROM takt.enqueue_many('demo', ARRAY[" + payload + "])");
  }
  EXPECT_EQ(items(), 12);
  refuses("takt.enqueue('demo', '\"\\u0000\"')", "unsupported Unicode escape sequence");
}

TEST_F(CallersTest, C2_Finding8_AClaimIsBoundedInBytesHoweverManyItemsItMayTake) {
  database.apply(plain_job("demo", "batch_size: 10000"));
  database->exec(
      std::string("INSERT INTO takt.items (job_id, payload)"
                  " SELECT 1, (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 3)) FROM generate_series(1, 700)"));
  const auto taken = claim("demo", 10000);
  EXPECT_EQ(taken.items.size(), 256U * 1024 * 1024 / taken.items.front().payload.size());
  EXPECT_EQ(items() + static_cast<std::int64_t>(taken.items.size()), 700);
  EXPECT_EQ(taken.items.front().id, 1) << "the oldest first";
}

// As a tick may have brought it, or an older version stored it.
TEST_F(CallersTest, C2_Finding8_AnItemThatPostgresqlCannotHandOutIsBlockedAndTheOthersGoOn) {
  database.apply(plain_job("demo"));
  const auto huge = [&] {
    database->exec(
        std::string("INSERT INTO takt.items (job_id, priority, payload)"
                    " SELECT 1, -1, jsonb_agg(1e131071::numeric) FROM generate_series(1, 8300)"));
  };
  huge();
  database->exec(std::string("SELECT takt.enqueue('demo') FROM generate_series(1, 2)"));
  const auto taken = claim("demo");
  ASSERT_EQ(taken.items.size(), 1U);
  EXPECT_EQ(taken.items.front().id, 2);
  EXPECT_EQ(database.text("SELECT state || ' ' || attempt || ' ' || takt.payload_start(payload) FROM takt.items WHERE id = 1"),
            "5 1 (too large to be shown)");
  EXPECT_EQ(database.text("SELECT class || ' ' || reason || ' ' || attempt FROM takt.failed_attempts"), "blocked payload_too_large 1");
  huge();  // while the run is under way
  const auto job = database.job("demo");
  const auto run = ended("due:1", 1, job, taken);
  Claim next;
  EXPECT_TRUE(settle_and_claim(*database, run, {job, next_tick_id(run), SystemClock().now(), "more", ++runs, "w", 100, false, false}, next)
                  .recorded);
  EXPECT_TRUE(next.items.empty());
  EXPECT_EQ(database.number("SELECT done FROM takt.runs WHERE id = 1"), 1) << "what is done stays done";
}

TEST_F(CallersTest, LargeClaimsTakeAllThatIsDueInTurn) {
  database.apply(plain_job("demo", "batch_size: 600"));
  const auto job = database.job("demo");
  database->exec(std::string("SELECT * FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[1900]))"));
  auto taken = claim("demo", 600);
  ASSERT_EQ(taken.items.size(), 600U);
  auto run = ended("due:1", 1, job, taken);
  for (const std::size_t expected : {600U, 600U, 100U, 0U}) {
    Claim next;
    settle_and_claim(*database, run, {job, next_tick_id(run), SystemClock().now(), "more", ++runs, "test-worker", 600, false, true}, next);
    ASSERT_EQ(next.items.size(), expected);
    run = ended(next_tick_id(run), runs, job, next);
  }
  EXPECT_EQ(database.number("SELECT count(DISTINCT id) FROM takt.finished_items"), 1900);
}

// C5, finding 26 ------------------------------------------------------------------------------------------------------------------

TEST_F(CallersTest, C2_Finding8_WhatTheClientCannotReadIsEnqueuedAllTheSame) {
  database.apply(plain_job("demo"));
  const auto latin = database->dedicated();
  latin->session().script("SET client_encoding = 'LATIN1'");
  const std::string payload = "jsonb_build_object('a', repeat(chr(20013), 60))";  // 180 bytes that LATIN1 has no letter for
  latin->session().script("SELECT takt.enqueue('demo', " + payload + ")");
  latin->session().script("SELECT takt.enqueue('demo', " + payload + ", 'k')");
  latin->session().script("SELECT count(*) FROM takt.enqueue_many('demo', ARRAY[" + payload + "])");
  latin->session().script("SELECT count(*) FROM takt.enqueue_many('demo', ARRAY[" + payload + "], keys => ARRAY['l'])");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE payload = " + payload), 4);
}

TEST_F(CallersTest, C5_Finding26_ASetWhoseArraysDoNotFitIsRefusedAndNothingIsStored) {
  database.apply(plain_job("demo"));
  const auto refused = [&](const std::string& arguments, const std::string& words) {
    refuses("* FROM takt.enqueue_many('demo', " + arguments + ")", words);
  };
  refused("ARRAY['{}']::jsonb[], ARRAY['a','b']", "payloads has 1 elements and keys has 2");
  refused("ARRAY['{}']::jsonb[], ARRAY[]::text[]", "payloads has 1 elements and keys has 0");
  refused("ARRAY['{}', '{}']::jsonb[], run_ats => ARRAY[now()]", "payloads has 2 elements and run_ats has 1");
  refused("ARRAY['{}', '{}']::jsonb[], priorities => '{1,2,3}'", "payloads has 2 elements and priorities has 3");
  refused("NULL, priorities => '{1,2,3}'", "payloads is NULL");
  refused("'{}'", "payloads is empty");
  refused("ARRAY['{}', NULL]::jsonb[]", "element 2 of payloads is NULL");
  refused("ARRAY[NULL, '{}']::jsonb[], ARRAY['a', 'b']", "element 1 of payloads is NULL");
  refused("ARRAY['{}', '{}']::jsonb[], run_ats => ARRAY[now(), NULL]", "element 2 of run_ats is NULL");
  refused("ARRAY['{}', '{}']::jsonb[], priorities => ARRAY[NULL, 1]", "element 1 of priorities is NULL");
  refused("ARRAY['{}', '{}']::jsonb[], ARRAY['a', 'b'], priorities => ARRAY[0, NULL]", "element 2 of priorities is NULL");
  refused("ARRAY['{}', '{}']::jsonb[], priorities => ARRAY[0, 101]", "priority of element 2 is 101, outside -100 to 100");
  refused("ARRAY['{}', '{}']::jsonb[], priorities => ARRAY[-2147483648, 0]", "priority of element 1 is -2147483648");
  refused("ARRAY['{}', '{}']::jsonb[], ARRAY['', repeat('k', 513)]", "key of element 2 has 513 characters");
  refused("array_fill('{}'::jsonb, ARRAY[10001])", "payloads has 10001 elements, more than 10000");
  refused("array_fill('{}'::jsonb, ARRAY[10000000])", "payloads has 10000000 elements");
  refuses("* FROM takt.enqueue_many('nobody', ARRAY['{}']::jsonb[])", "no job named \"nobody\"");
  refuses("* FROM takt.enqueue_many(NULL, ARRAY['{}']::jsonb[])", "no job named");
  EXPECT_EQ(items(), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys"), 0);
}

TEST_F(CallersTest, C5_Finding26_ArraysOfAnyShapeAreReadInTheirOrder) {
  database.apply(plain_job("demo"));
  EXPECT_EQ(database.text(
                "SELECT string_agg(ordinal || ' ' || created, ', ') FROM takt.enqueue_many('demo', '[5:6]={\"1\",\"2\"}', '[-3:-2]={a,b}',"
                " NULL, '[0:1]={7,8}')"),
            "1 true, 2 true");
  EXPECT_EQ(database.text("SELECT string_agg(payload || key || priority, ' ' ORDER BY id) FROM takt.items"), "1a7 2b8");
  database->exec(std::string("SELECT * FROM takt.enqueue_many('demo', '{{1,2},{3,4}}', '{{c,d},{e,f}}')"));
  EXPECT_EQ(database.text("SELECT string_agg(payload || key, ' ' ORDER BY id) FROM takt.items WHERE key > 'b'"), "1c 2d 3e 4f");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.enqueue_many('demo', ARRAY['{}', '{}', '{}']::jsonb[], ARRAY[NULL, '', NULL])"), 3)
      << "none has a key";
  EXPECT_EQ(items("key IS NULL"), 3);
  EXPECT_EQ(database.number("SELECT max(ordinal) FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[10000]))"), 10000);
}

TEST_F(CallersTest, KeysOfAnyCharactersArePassedOnAsTheyAre) {
  database.apply(plain_job("demo"));
  for (const std::string key :
       {"'\U0001F600'", "'\u05D0\u05D1 \u202E'", "E'e\\u0301'", "E'\\x01\\n\\t'", "'\\u0000'", "repeat('\U0001F600', 512)", "' '"}) {
    EXPECT_EQ(database.number("SELECT takt.enqueue('demo', key => " + key + ")"),
              database.number("SELECT takt.enqueue('demo', key => " + key + ")"));
    EXPECT_EQ(items("key = " + key), 1) << key;
  }
  refuses("takt.enqueue('demo', key => repeat('\U0001F600', 513))", "key has 513 characters");
  refuses("takt.enqueue(NULL)", "no job named");
  refuses("takt.enqueue('')", "no job named \"\"");
  refuses("takt.enqueue('demo', priority => 2147483647)", "priority is 2147483647, outside -100 to 100");
  refuses("takt.enqueue('demo', priority => -2147483648)", "priority is -2147483648");
  accepts("takt.enqueue('demo', NULL, NULL, NULL, NULL)");
  EXPECT_EQ(items("key IS NULL AND payload = '{}' AND priority = 0"), 1) << "NULL is the default everywhere";
}

TEST_F(CallersTest, ARoleThatMayOnlyExecuteEnqueuesFromAFunctionOfItsOwn) {
  database.apply(plain_job("demo"));
  const std::string role = "app_" + database.text("SELECT current_database()");
  database->exec("CREATE ROLE " + role);
  Application application(database);
  application.run("GRANT USAGE ON SCHEMA takt TO " + role + "; GRANT EXECUTE ON FUNCTION takt.enqueue, takt.enqueue_many TO " + role +
                  "; CREATE SCHEMA app AUTHORIZATION " + role + "; SET ROLE " + role + "; SET search_path = app");
  application.run(
      "CREATE FUNCTION app.place(n int) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RETURN takt.enqueue('demo', to_jsonb(n), key => 'o' || "
      "n);"
      " EXCEPTION WHEN unique_violation THEN RETURN 0; END$$");
  application.run(
      "BEGIN; SELECT app.place(n) FROM generate_series(1, 3) n; SAVEPOINT s; SELECT app.place(4); ROLLBACK TO s;"
      " SELECT * FROM takt.enqueue_many('demo', ARRAY['5', '6']::jsonb[], ARRAY['o5', 'o1']); COMMIT");
  for (const std::string deed : {"SELECT takt.store_items(1, ARRAY['{}']::jsonb[], NULL, NULL, NULL)", "SELECT count(*) FROM takt.items",
                                 "SELECT takt.enqueue_keyed('demo', '{}', 'k', NULL, 0)"}) {
    EXPECT_NE(application.refused(deed).find("permission denied"), std::string::npos) << deed;
  }
  application.run("RESET ROLE; DROP SCHEMA app CASCADE; DROP OWNED BY " + role + "; DROP ROLE " + role);
  EXPECT_EQ(database.text("SELECT string_agg(key, ' ' ORDER BY key) FROM takt.items"), "o1 o2 o3 o5");
}

// C6, findings 14 and 25 ------------------------------------------------------------------------------------------------------------

TEST_F(CallersTest, C6_Finding14_AMigrationGoesOnWhileATransactionThatEnqueuedIsOpen) {
  database.apply(plain_job("demo"));
  Application open(database);
  open.run("BEGIN; SELECT takt.enqueue('demo'); SELECT * FROM takt.enqueue_many('demo', ARRAY['{}']::jsonb[])");
  const auto began = std::chrono::steady_clock::now();
  migrate(*database, [](const std::string&) {});
  database->exec(std::string("SELECT takt.ensure_partitions()"));
  EXPECT_LT(std::chrono::steady_clock::now() - began, 2s);
  open.run("COMMIT");
  Application migration(database);
  migration.run("BEGIN; SELECT pg_advisory_xact_lock(1952541556); SELECT pg_advisory_xact_lock(1952541556, 1)");
  const auto listening = database->dedicated();
  EXPECT_TRUE(listening->wait_notifications(0ms).empty());
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(listening->wait_notifications(10s), std::set<std::string>{"demo"}) << "whatever lock an older migration holds";
}

TEST_F(CallersTest, C6_Finding25_AnOpenTransactionKeepsNobodyElseFromNotifying) {
  database.apply(plain_job("a") + plain_job("b"));
  Application of_a(database), of_b(database), set_of_b(database);
  of_a.run("BEGIN; SELECT takt.enqueue('a')");
  of_b.run("BEGIN; SELECT takt.enqueue('b') FROM generate_series(1, 1000)");
  set_of_b.run("BEGIN; SELECT * FROM takt.enqueue_many('b', ARRAY['{}']::jsonb[])");
  EXPECT_LE(advisory_locks(), 3) << "one a transaction and job";
  std::this_thread::sleep_for(60ms);  // what began with them leaves the notification to them
  const auto listening = database->dedicated();
  EXPECT_TRUE(listening->wait_notifications(0ms).empty());
  for (int i = 0; i < 5; ++i) {
    for (const std::string sql : {"SELECT takt.enqueue('b')", "SELECT takt.enqueue('b', key => 'k' || random())",
                                  "SELECT count(*) FROM takt.enqueue_many('b', ARRAY['{}']::jsonb[])"}) {
      database->exec(sql);
      const auto began = std::chrono::steady_clock::now();
      EXPECT_EQ(listening->wait_notifications(10s), std::set<std::string>{"b"});
      EXPECT_LT(std::chrono::steady_clock::now() - began, 1s);
    }
  }
  of_a.run("COMMIT");
  EXPECT_EQ(listening->wait_notifications(10s), std::set<std::string>{"a"});
  of_b.run("ROLLBACK");
  set_of_b.run("ROLLBACK");
}

TEST_F(CallersTest, Finding25_ATransactionThatEnqueuesForManyJobsHoldsFewLocks) {
  database->exec(
      std::string("INSERT INTO takt.jobs (name, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source)"
                  " SELECT 'j' || n, 'default', '{}', 100, 0, 5, '0', 'api' FROM generate_series(1, 1000) n"));
  Application open(database);
  open.run("BEGIN; SELECT takt.enqueue('j' || n) FROM generate_series(1, 1000) n");
  EXPECT_LE(advisory_locks(), 64);
  open.run("COMMIT");
}

}  // namespace
}  // namespace takt
