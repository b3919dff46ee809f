// Claim, settle, heartbeat: the life of an item between ticks.
#include <gtest/gtest.h>

#include <array>
#include <iostream>

#include "dispatcher/lease_rescue.h"
#include "dispatcher/retention.h"
#include "tests/support/fixture.h"
#include "tests/support/runs.h"
#include "worker/claim.h"
#include "worker/heartbeat.h"
#include "worker/settle.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct ItemsTest : testing::Test {
  TestDatabase database;
  std::int64_t last_run = 0;

  void enqueue(int count, const std::string& job, const std::string& more = "") {
    database->exec("SELECT takt.enqueue('" + job + "', jsonb_build_object('n', n)" + more + ") FROM generate_series(1, " +
                   std::to_string(count) + ") n");
  }
  Claim claim(const CatalogJob& job, const std::string& tick, int batch, std::int64_t run_id) {
    return claim_batch(*database, {job, tick, SystemClock().now(), tick_source(tick), run_id, "test-worker", batch});
  }
  /// Continues run 1, which took two of the due items, in run 2 under the tick more:1.
  Claim chain(const CatalogJob& job) {
    Claim second;
    const auto first = claim(job, "due:1", 2, 1);
    settle_and_claim(*database, ended("due:1", 1, job, first), goes_on(job, 2), second);
    return second;
  }
  static ClaimRequest goes_on(const CatalogJob& job, std::int64_t run) {
    return {job, "more:1", SystemClock().now(), "more", run, "test-worker", 2, false, true};
  }
  /// Ends a run with one class for all its items.
  Settled settle(const CatalogJob& job, const std::string& tick, std::int64_t run_id, const Claim& claim, ItemClass item_class,
                 bool drains = false) {
    auto run = ended(tick, run_id, job, claim);
    run.drains = drains;
    for (std::size_t i = 0; i < claim.items.size(); ++i) {
      run.results[i].item_class = item_class;
      if (item_class == ItemClass::error) run.results[i].reason = "http_500";
      run.settlements[i] = settle_item(claim.items[i], run.results[i], job.definition, 0ms, 0.5);
    }
    return settle_run(*database, run);
  }
};

// takt.enqueue runs with its owner's rights and does not set search_path: nothing of the caller's may run inside.
TEST_F(ItemsTest, NothingOfTheCallersSearchPathRunsInsideEnqueue) {
  database.apply(plain_job("demo"));
  database->transaction([](Session& session) {
    session.script(R"(
    CREATE SCHEMA trap;
    CREATE TABLE trap.caught (what text);
    CREATE FUNCTION trap.caught(what text) RETURNS void LANGUAGE sql AS 'INSERT INTO trap.caught VALUES (what)';
    CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('now'); RETURN pg_catalog.now(); END$$;
    CREATE FUNCTION trap.length(text) RETURNS integer LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('length'); RETURN 1; END$$;
    CREATE FUNCTION trap.pg_column_size(jsonb) RETURNS integer LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('size'); RETURN 1; END$$;
    CREATE FUNCTION trap.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('lock'); RETURN true; END$$;
    CREATE FUNCTION trap.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('notify'); END$$;
    CREATE FUNCTION trap.text_eq(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('='); RETURN a::bytea OPERATOR(pg_catalog.=) b::bytea; END$$;
    CREATE FUNCTION trap.int_gt(a integer, b integer) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('>'); RETURN a OPERATOR(pg_catalog.>) b; END$$;
    CREATE FUNCTION trap.int_lt(a integer, b integer) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('<'); RETURN a OPERATOR(pg_catalog.<) b; END$$;
    CREATE FUNCTION trap.time_le(a timestamptz, b timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('<='); RETURN a OPERATOR(pg_catalog.<=) b; END$$;
    CREATE FUNCTION trap.pg_column_compression(jsonb) RETURNS text LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('compression'); RETURN ''; END$$;
    CREATE FUNCTION trap.octet_length(text) RETURNS integer LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('octets'); RETURN 1; END$$;
    CREATE FUNCTION trap.date_part(text, timestamptz) RETURNS float8 LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('date_part'); RETURN 1; END$$;
    CREATE FUNCTION trap.int_or(a integer, b integer) RETURNS integer LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('bits'); RETURN a; END$$;
    CREATE FUNCTION trap.bigint_shift(a bigint, b integer) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('<<'); RETURN a; END$$;
    CREATE FUNCTION trap.bigint_plus(a bigint, b bigint) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('+'); RETURN a; END$$;
    CREATE FUNCTION trap.real_times(a float8, b float8) RETURNS float8 LANGUAGE plpgsql AS $$BEGIN PERFORM trap.caught('*'); RETURN a; END$$;
    CREATE OPERATOR trap.| (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.int_or);
    CREATE OPERATOR trap.& (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.int_or);
    CREATE OPERATOR trap.<< (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = trap.bigint_shift);
    CREATE OPERATOR trap.+ (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = trap.bigint_plus);
    CREATE OPERATOR trap.* (LEFTARG = float8, RIGHTARG = float8, FUNCTION = trap.real_times);
    CREATE OPERATOR trap.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.time_le);
    CREATE OPERATOR trap.>= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.time_le);
    CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.text_eq);
    CREATE OPERATOR trap.> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.int_gt);
    CREATE OPERATOR trap.< (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.int_lt);
    CREATE OPERATOR trap.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.time_le);
    CREATE FUNCTION trap.unqualified() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()';)");
  });
  database->transaction([](Session& session) {
    session.script("SET LOCAL search_path = trap, pg_catalog");
    session.script("SELECT takt.enqueue('demo', '{}')");
    session.script("SELECT takt.enqueue('demo', '{}', key => 'a', run_at => pg_catalog.now(), priority => 1)");
    session.script("SELECT takt.enqueue('demo', '{}', key => 'a', run_at => pg_catalog.now(), priority => 1)");
    session.script("SELECT takt.enqueue('demo', pg_catalog.to_jsonb(pg_catalog.repeat('x', 5000)), run_at => '1999-01-01 00:00:00+00')");
    session.script("SELECT * FROM takt.enqueue_many('demo', ARRAY['{}', '{}']::jsonb[], ARRAY['b', NULL])");
  });
  EXPECT_EQ(database.text("SELECT coalesce(string_agg(what, ' '), '') FROM trap.caught"), "");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 5);
  database->transaction([](Session& session) {
    session.script("SET LOCAL search_path = trap, pg_catalog");
    session.script("SELECT trap.unqualified()");
  });
  EXPECT_EQ(database.text("SELECT string_agg(what, ' ') FROM trap.caught"), "now") << "the trap itself works";
}

TEST_F(ItemsTest, AreRefusedWhereSomethingIsOutOfBoundsAndTakenAtTheBounds) {
  database.apply(plain_job("demo"));
  const auto refusal = [&](const std::string& arguments) -> std::string {
    try {
      database->exec("SELECT takt.enqueue(" + arguments + ")");
    } catch (const DatabaseError& error) {
      return error.what();
    }
    return "";
  };
  const auto said = [&](const std::string& arguments, const std::string& words) {
    EXPECT_NE(refusal(arguments).find(words), std::string::npos) << arguments << ": " << refusal(arguments);
  };
  said("'demo', priority => 101", "priority is 101, outside -100 to 100");
  said("'demo', priority => -101", "priority is -101, outside -100 to 100");
  said("'demo', key => repeat('k', 513)", "key has 513 characters, more than 512");
  said("'demo', to_jsonb(repeat('p', 524288))", "payload has 5");
  said("'nobody'", "no job named \"nobody\"");
  said("'nobody', key => 'k'", "no job named \"nobody\"");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
  for (const std::string accepted :
       {"'demo', priority => 100", "'demo', priority => -100", "'demo', key => repeat('k', 512)", "'demo', to_jsonb(repeat('p', 524000))",
        "'demo', key => ''", "'demo', key => ''", "'demo', NULL, NULL, NULL"}) {
    EXPECT_EQ(refusal(accepted), "") << accepted;
  }
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 7) << "an empty key is none";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys"), 1);
}

TEST_F(ItemsTest, AreClaimedOldestFirstWithinPriorityAndAtMostABatch) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(3, "demo", ", run_at => now() - n * interval '1 minute'");
  enqueue(1, "demo", ", priority => -1");
  enqueue(1, "demo", ", run_at => now() + interval '1 hour'");
  const auto first = claim(job, "due:1", 2, 1);
  ASSERT_EQ(first.items.size(), 2U);
  EXPECT_EQ(first.items[0].id, 4) << "the lower priority number first";
  EXPECT_EQ(first.items[1].id, 3) << "then the oldest";
  EXPECT_EQ(first.items[0].attempt, 1);
  EXPECT_EQ(claim(job, "due:2", 100, 2).items.size(), 2U) << "not those that are running, not those to come";
}

TEST_F(ItemsTest, LeaveTheLiveTableWhenClaimedAndStayInTheirRunWhenDone) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(5, "demo", ", key => 'k' || n");
  const auto claimed = claim(job, "due:1", 3, 1);
  const auto settled = settle(job, "due:1", 1, claimed, ItemClass::done, true);
  EXPECT_TRUE(settled.recorded);
  EXPECT_EQ(settled.items, 3);
  EXPECT_EQ(settled.remaining, 2);
  EXPECT_TRUE(settled.continues);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 2);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 2 AND attempts = 1 AND key = 'k' || id"), 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.attempts WHERE class = 'done'"), 3);
  EXPECT_EQ(database.number("SELECT done FROM takt.runs WHERE tick_id = 'due:1' AND status = 'completed'"), 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.running_items"), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NULL"), 2);
  EXPECT_EQ(database.text("SELECT source FROM takt.ticks WHERE id = 'more:1'"), "more");
}

TEST_F(ItemsTest, AreSettledOnceHoweverOftenTheSettlingIsRepeated) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(2, "demo");
  const auto claimed = claim(job, "due:1", 10, 1);
  EXPECT_EQ(settle(job, "due:1", 1, claimed, ItemClass::error).items, 2);
  const auto again = settle(job, "due:1", 1, claimed, ItemClass::error);
  EXPECT_FALSE(again.recorded);
  EXPECT_EQ(again.items, 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs"), 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts"), 2);
}

TEST_F(ItemsTest, CannotBeSettledByAWorkerThatLostThem) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(1, "demo");
  const auto lost = claim(job, "due:1", 10, 1);
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s'"));
  database->exec(std::string("UPDATE takt.leader SET holder = 'd', term = 1, until = now() + interval '1 min'"));
  ASSERT_EQ(rescue_expired_leases(*database, {"d", 1}, 10).returned, 1);
  const auto successor = claim(job, "due:2", 10, 2);
  ASSERT_EQ(successor.items.size(), 1U);
  EXPECT_FALSE(settle(job, "due:1", 1, lost, ItemClass::done).recorded) << "its token is stale";
  EXPECT_EQ(settle(job, "due:2", 2, successor, ItemClass::done).items, 1);
  EXPECT_EQ(database.number("SELECT run_id FROM takt.finished_items"), 2);
}

TEST_F(ItemsTest, AreFoundAgainByTheRunThatClaimedThem) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(3, "demo");
  const auto first = claim(job, "due:1", 10, 7);
  const auto repeated = claim(job, "due:1", 10, 7);  // as after a connection lost between commit and answer
  EXPECT_EQ(repeated.outcome, ClaimOutcome::claimed);
  ASSERT_EQ(repeated.items.size(), 3U);
  EXPECT_EQ(repeated.items[0].attempt, 1) << "no second attempt was counted";
  EXPECT_EQ(claim(job, "due:1", 10, 8).outcome, ClaimOutcome::duplicate) << "another run must not have them";
}

TEST_F(ItemsTest, DieWithTheirReasonAndLeaveALetterInTheOutbox) {
  database.apply(plain_job("demo", "max_attempts: 1"));
  const auto job = database.job("demo");
  enqueue(1, "demo", ", key => 'k'");
  settle(job, "due:1", 1, claim(job, "due:1", 10, 1), ItemClass::error);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 3"), 1);
  EXPECT_EQ(database.text("SELECT body->>'reason' FROM takt.dead_letter_outbox WHERE id = 'item-1-0'"), "max_attempts");
  EXPECT_EQ(database.text("SELECT reason FROM takt.failed_attempts"), "http_500") << "the attempt keeps its own reason";
}

TEST_F(ItemsTest, OfAnExclusiveJobAreTakenByOneRunAtATime) {
  database.apply(plain_job("solo", "concurrency: 1"));
  const auto job = database.job("solo");
  enqueue(4, "solo");
  const auto first = claim(job, "due:1", 1, 1);
  EXPECT_EQ(first.outcome, ClaimOutcome::claimed);
  const auto second = claim(job, "due:2", 1, 2);
  EXPECT_EQ(second.outcome, ClaimOutcome::locked);
  EXPECT_TRUE(second.items.empty());
  settle(job, "due:1", 1, first, ItemClass::done);
  EXPECT_EQ(claim(job, "due:3", 1, 3).outcome, ClaimOutcome::claimed);
}

TEST_F(ItemsTest, OfAPausedJobStay) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(2, "demo");
  database->exec(std::string("UPDATE takt.jobs SET paused = true"));
  EXPECT_TRUE(claim(job, "due:1", 10, 1).items.empty());
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE state = 0"), 2);
}

TEST_F(ItemsTest, CarriedInlineAreStoredOnceHoweverOftenTheTickArrives) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  v1::JobTick tick;
  tick.set_id("external-1");
  tick.set_job("demo");
  for (int i = 0; i < 3; ++i) tick.add_items();
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(accept_inline_items(*database, job, tick, "external"));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 3);
  settle(job, "external-1", 1, claim(job, "external-1", 10, 1), ItemClass::done);
  EXPECT_TRUE(accept_inline_items(*database, job, tick, "external"));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0) << "and not again after they are done";
  EXPECT_EQ(claim(job, "external-1", 10, 2).outcome, ClaimOutcome::duplicate);
}

TEST_F(ItemsTest, AreKeptByAHeartbeatAndLostWithoutOne) {
  database.apply(plain_job("demo", "lease: 2s"));
  const auto job = database.job("demo");
  enqueue(1, "demo");
  claim(job, "due:1", 10, 1);
  Heartbeat heartbeat(*database);
  const auto control = std::make_shared<RunControl>();
  heartbeat.add(1, "due:1", 2s, control);
  const auto before = database.text("SELECT lease_until FROM takt.ticks");
  EXPECT_EQ(heartbeat.beat(std::chrono::steady_clock::now()), 0) << "a fresh lease needs none";
  EXPECT_EQ(heartbeat.beat(std::chrono::steady_clock::now() + 1s), 1);
  EXPECT_NE(database.text("SELECT lease_until FROM takt.ticks"), before);
  database->exec(std::string("UPDATE takt.ticks SET run_id = 99"));  // somebody else's now
  heartbeat.beat(std::chrono::steady_clock::now() + 2s);
  EXPECT_TRUE(control->lost());
}

// The hot statements must use their index, and a backlog must not change that.
TEST_F(ItemsTest, AreFoundThroughTheirIndexInALargeBacklog) {
  database.apply(plain_job("demo") + plain_job("other"));
  database->exec(
      std::string("INSERT INTO takt.items (job_id, run_at) SELECT 1 + n % 2, now() - interval '1 s' FROM generate_series(1, 20000) n"));
  database->exec(std::string("ANALYZE takt.items"));
  const auto rows =
      database->exec(std::string("EXPLAIN SELECT i.id FROM takt.items i WHERE i.job_id = 1 AND i.state = 0 AND i.run_at <= now() "
                                 "ORDER BY i.priority, i.run_at, i.id LIMIT 100 FOR UPDATE SKIP LOCKED"));
  std::string plan;
  for (std::size_t i = 0; i < rows.size(); ++i) plan += std::string(rows.text(i, 0)) + "\n";
  EXPECT_NE(plan.find("items_due"), std::string::npos) << plan;
  EXPECT_EQ(plan.find("Sort"), std::string::npos) << plan;
}

TEST_F(ItemsTest, OfALongBacklogAreTakenOnInTheStatementThatEndsTheRunBefore) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(5, "demo", ", run_at => now() - (10 - n) * interval '1 minute'");
  const auto first = claim(job, "due:1", 2, 1);
  Claim next;
  const auto goes_on = [&](std::int64_t run, bool from_there) {
    return ClaimRequest{job, continuation_id(run - 1), SystemClock().now(), "more", run, "test-worker", 2, false, from_there};
  };
  enqueue(1, "demo", ", run_at => now() - interval '1 hour'");  // older than what was taken
  EXPECT_TRUE(settle_and_claim(*database, ended("due:1", 1, job, first), goes_on(2, true), next).continues);
  ASSERT_EQ(next.items.size(), 2U);
  EXPECT_EQ(next.items[0].id, 3) << "it goes on where the first run ended";
  EXPECT_EQ(next.items[1].id, 4);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'running'"), 1);
  EXPECT_EQ(database.text("SELECT tick_id FROM takt.runs WHERE status = 'running'"), "more:1");

  Claim third;
  settle_and_claim(*database, ended("more:1", 2, job, next), goes_on(3, false), third);
  ASSERT_EQ(third.items.size(), 2U);
  EXPECT_EQ(third.items[0].id, 6) << "and now and then begins at the oldest again";
  Claim repeated;
  const auto again = settle_and_claim(*database, ended("more:1", 2, job, next), goes_on(3, false), repeated);
  EXPECT_TRUE(again.recorded) << "as after a connection lost between commit and answer";
  EXPECT_EQ(repeated.items.size(), 2U) << "what was committed is found, not claimed twice";

  Claim none;
  const auto last = settle_and_claim(*database, ended("more:2", 3, job, third), goes_on(4, true), none);
  EXPECT_FALSE(last.continues);
  EXPECT_EQ(none.outcome, ClaimOutcome::duplicate) << "nothing is left to begin";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items"), 6);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 0);
}

TEST_F(ItemsTest, OfAChainOfRunsAreTakenUnderOneTickUntilNoneIsLeft) {
  database.apply(plain_job("demo", "dedupe_window: 1h"));
  const auto job = database.job("demo");
  enqueue(9, "demo", ", key => 'k' || n");  // in one transaction: all have the same run_at
  const auto go_on = [&](const RunRecord& run, std::int64_t next_run, Claim& next) {
    return settle_and_claim(*database, run, {job, next_tick_id(run), SystemClock().now(), "more", next_run, "test-worker", 3, false, true},
                            next);
  };
  Claim second, third, fourth, none;
  const auto first = claim(job, "due:1", 3, 1);
  go_on(ended("due:1", 1, job, first), 2, second);
  auto run = ended("more:1", 2, job, second);
  run.results[1].item_class = ItemClass::noop;
  ASSERT_EQ(next_tick_id(run), "more:1");
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() + interval '10 s' WHERE id = 'more:1'"));
  const auto settled = go_on(run, 3, third);
  EXPECT_TRUE(settled.continues);
  EXPECT_EQ(settled.remaining, 3);
  ASSERT_EQ(third.items.size(), 3U);
  EXPECT_EQ(third.items[0].id, 7) << "behind the place where the last claim ended, though all are due at the same moment";
  EXPECT_EQ(third.items[0].key, "k7");
  EXPECT_EQ(database.text("SELECT done || ' ' || noop || ' ' || status || ' ' || remaining FROM takt.runs WHERE id = 2"),
            "2 1 completed 3");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks"), 2) << "due:1 and more:1";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE lease_until > now() + interval '11 s'"), 1)
      << "the lease is whole again";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NOT NULL"), 6);

  Claim repeated;
  EXPECT_TRUE(go_on(run, 3, repeated).recorded) << "as after a connection lost between commit and answer";
  EXPECT_EQ(repeated.items.size(), 3U);
  EXPECT_FALSE(go_on(run, 4, repeated).recorded) << "the run is over";
  EXPECT_EQ(repeated.outcome, ClaimOutcome::duplicate);

  enqueue(1, "demo", ", run_at => now() - interval '1 hour'");  // before the place where the chain is
  auto last = ended("more:1", 3, job, third);
  EXPECT_TRUE(go_on(last, 4, fourth).continues) << "what lies before is found where nothing lies behind";
  ASSERT_EQ(fourth.items.size(), 1U);
  last = ended("more:1", 4, job, fourth);
  EXPECT_FALSE(go_on(last, 5, none).continues);
  EXPECT_EQ(none.outcome, ClaimOutcome::duplicate);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL OR lease_until IS NOT NULL"), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items"), 10);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'completed'"), 4);
}

// The planner knows nothing yet of the ticks that came in a moment ago; going on must not read them.
TEST_F(ItemsTest, OfAChainGoOnAtTheSameCostHoweverManyTicksAreUnfinished) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(30, "demo");
  for (int i = 1; i <= 2; ++i) claim(job, continuation_id(i), 5, i);
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, published_at) "
                  "SELECT 'demo/s@' || n, 1, 'schedule', now(), now() FROM generate_series(1, 3000) n"));
  for (const char* statistics : {"SELECT 1", "ANALYZE takt.ticks"}) {
    const auto connection = database->dedicated();
    auto& on = connection->session();
    on.script(statistics);
    on.script("BEGIN");
    const auto rows = on.script(
        "SELECT n, item_id FROM takt.go_on('{more:1,more:2}', '{1,2}', '{3,4}', '{0,0}', '{1,1}', '{NULL,NULL}',"
        " '{\"{1,1,1,1,1}\",\"{1,1,1,1,1}\"}', '{NULL,NULL}', true, 1, 0, 'w', 30000, 5, true)");
    EXPECT_EQ(rows.size(), 12U) << "two runs, ten items";
    const auto read = on.script("SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'ticks'");
    EXPECT_LE(read.integer(0, 0), 4) << statistics;
    on.script("ROLLBACK");
  }
}

// As a night's VACUUM leaves tomorrow's partition: of the empty table sessions make a plan that reads all of an index, and keep it.
TEST_F(ItemsTest, OfAChainGoOnAtTheSameCostOnceATableThatWasVacuumedWhileEmptyIsCounted) {
  constexpr int kRuns = 300;
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(2 * kRuns + 1, "demo");
  auto held = claim(job, "more:1", 1, 1);
  database->exec(
      std::string("WITH t AS (UPDATE takt.ticks SET begun_at = begun_at + interval '1 day') "
                  "UPDATE takt.runs SET started_at = started_at + interval '1 day'"));
  // Autovacuum may come by at any moment, and would count the table before this test does.
  database->exec(
      std::string("DO $$ DECLARE part regclass; BEGIN FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'takt.runs'::regclass "
                  "LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', part); END LOOP; END $$"));
  database->dedicated()->outside_transaction("VACUUM takt.runs");
  std::int64_t run = 1;
  const auto rows_read = [&] {
    for (int i = 0; i < kRuns; ++i, ++run) {
      Claim next;
      settle_and_claim(*database, ended("more:1", run, job, held),
                       {job, "more:1", SystemClock().now(), "more", run + 1, "test-worker", 1, false, true}, next);
      if (next.items.size() != 1) throw std::runtime_error("the chain ended at run " + std::to_string(run));
      held = next;
    }
    database->exec(std::string("SELECT pg_stat_force_next_flush()"));
    return database.number("SELECT sum(idx_tup_fetch) FROM pg_stat_user_tables WHERE relname LIKE 'runs_2%'");
  };
  const auto before = rows_read();
  // No more than usual: where other sessions change tables all the time, plans are made anew, and then of a table that is not empty.
  if (before < 50 * kRuns) std::cout << "plans were made anew meanwhile, so that " << before << " rows were read\n";
  EXPECT_EQ(analyze_grown(*database), 1) << "the day's partition of takt.runs";
  EXPECT_EQ(analyze_grown(*database), 0) << "once";
  EXPECT_LE(rows_read() - before, 10 * kRuns);
}

TEST_F(ItemsTest, OfAChainThatLostItsLeaseAreNotSettledByIt) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(4, "demo");
  const auto second = chain(job);
  Claim third;
  database->exec(std::string("UPDATE takt.ticks SET run_id = 99 WHERE id = 'more:1'"));
  EXPECT_FALSE(settle_and_claim(*database, ended("more:1", 2, job, second), goes_on(job, 3), third).recorded);
  EXPECT_EQ(third.outcome, ClaimOutcome::duplicate);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items"), 2);
}

TEST_F(ItemsTest, OfAPausedJobEndTheirChain) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(6, "demo");
  const auto second = chain(job);
  Claim third;
  database->exec(std::string("UPDATE takt.jobs SET paused = true"));
  const auto settled = settle_and_claim(*database, ended("more:1", 2, job, second), goes_on(job, 3), third);
  EXPECT_FALSE(settled.continues);
  EXPECT_EQ(settled.remaining, 2);
  EXPECT_EQ(database.number("SELECT remaining FROM takt.runs WHERE id = 2"), 2);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 2);
}

TEST_F(ItemsTest, OfManyChainsGoOnInOneStatement) {
  database.apply(plain_job("demo", "dedupe_window: 1h"));
  const auto job = database.job("demo");
  enqueue(14, "demo", ", key => 'k' || n, priority => (n % 2)::integer, run_at => now() - n * interval '1 s'");
  std::vector<RunRecord> runs;
  for (int i = 1; i <= 4; ++i) {
    const auto tick = continuation_id(i);
    runs.push_back(ended(tick, i, job, claim(job, tick, 2, i)));
  }
  runs[2].results[1].item_class = ItemClass::noop;
  database->exec(std::string("UPDATE takt.ticks SET run_id = 99 WHERE id = 'more:2'"));  // its lease was lost
  // Eight of the fourteen are held; six are left, for which three chains ask, four a batch.
  std::vector<ClaimRequest> next;
  for (int i = 1; i <= 4; ++i)
    next.push_back({job, continuation_id(i), SystemClock().now(), "more", 10 + i, "test-worker", 4, false, true});
  std::vector<Claim> claims(4);
  std::vector<Continuation> chains;
  for (std::size_t i = 0; i < 4; ++i) chains.push_back({runs[i], next[i], claims[i], {}});
  const auto before = database->round_trips();
  settle_and_claim(*database, {chains.data(), &chains[1], &chains[2], &chains[3]});
  EXPECT_EQ(database->round_trips() - before, 2U) << "one statement, and one more about the run that was lost";

  EXPECT_FALSE(chains[1].settled.recorded);
  EXPECT_EQ(database.text("SELECT status FROM takt.runs WHERE id = 2"), "running") << "the fence stands for one run alone";
  std::map<std::size_t, int> shares;
  std::set<std::int64_t> taken;
  for (const std::size_t i : {0, 2, 3}) {
    EXPECT_TRUE(chains[i].settled.recorded);
    EXPECT_EQ(chains[i].settled.continues, !claims[i].items.empty());
    ++shares[claims[i].items.size()];
    for (const auto& item : claims[i].items) taken.insert(item.id);
    if (!claims[i].items.empty()) {
      const auto run = "FROM takt.runs WHERE id = " + std::to_string(next[i].run_id);
      EXPECT_EQ(database.number("SELECT cardinality(items) " + run), static_cast<std::int64_t>(claims[i].items.size()));
      EXPECT_EQ(database.number("SELECT last_id " + run), claims[i].items.back().id);
      EXPECT_EQ(database.number("SELECT item_ids[1] " + run), claims[i].items.front().id);
      EXPECT_EQ(database.number("SELECT item_max - item_min " + run),
                database.number("SELECT max(i) - min(i) FROM (SELECT unnest(item_ids) AS i " + run + ") x"));
      EXPECT_EQ(database.text("SELECT keys[1] " + run), claims[i].items.front().key);
    }
  }
  EXPECT_EQ(shares, (std::map<std::size_t, int>{{0, 1}, {2, 1}, {4, 1}})) << "one chain has ended";
  EXPECT_EQ(taken.size(), 6U);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'completed' AND done = 2 AND noop = 0"), 2);
  EXPECT_EQ(database.text("SELECT done || ' ' || noop FROM takt.runs WHERE id = 3"), "1 1");
  EXPECT_EQ(database.number("SELECT sum(remaining) FROM takt.runs WHERE status = 'completed'"), 6);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NOT NULL AND lease_until IS NULL"), 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys WHERE expires_at IS NOT NULL"), 6) << "not those of the lost run";
}

// Deterministic, unlike a time: what a batch costs, whatever its size. docs/performance.md states these figures.
TEST_F(ItemsTest, CostTwoRoundTripsABatchAndOneIfTheyContinue) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(300, "demo");
  auto before = database->round_trips();
  const auto first = claim(job, "due:1", 100, 1);
  EXPECT_EQ(database->round_trips() - before, 1U) << "the claim";
  Claim next;
  before = database->round_trips();
  settle_and_claim(*database, ended("due:1", 1, job, first),
                   {job, continuation_id(1), SystemClock().now(), "more", 2, "test-worker", 100, false, true}, next);
  EXPECT_EQ(database->round_trips() - before, 1U) << "the end of one run and the claim of the next";
  before = database->round_trips();
  settle(job, "more:1", 2, next, ItemClass::error);
  EXPECT_EQ(database->round_trips() - before, 1U) << "an end with failures in it";
}

// Rows as PostgreSQL itself counts them.
TEST_F(ItemsTest, CostNoMoreThanTheseRowsWrittenABatch) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  enqueue(200, "demo");
  using Written = std::array<std::int64_t, 3>;  // inserted, updated, deleted
  Written claimed{}, settled{}, gone_on{};
  const auto total = [](Session& on) -> Written {
    const auto rows = on.exec(std::string("SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del) FROM pg_stat_xact_user_tables "
                                          "WHERE schemaname = 'takt'"),
                              {});
    return {rows.integer(0, 0), rows.integer(0, 1), rows.integer(0, 2)};
  };
  const auto since = [&](Session& on, const Written& before) -> Written {
    const auto now = total(on);
    return {now[0] - before[0], now[1] - before[1], now[2] - before[2]};
  };
  database->transaction([&](Session& on) {
    auto before = total(on);
    on.exec(std::string("SELECT count(*) FROM takt.begin_run('due:1', $1, now(), 'due', 1, 'w', 30000, false, 100, false)"),
            Params::of(job.id));
    claimed = since(on, before);
    before = total(on);
    on.exec(std::string("SELECT takt.end_run('due:1', 1, $1, 'demo', 0, false, 'completed', '{100,100,0,0,0,0,0,0}', 0, 1, NULL, NULL,"
                        " array_fill(1::real, ARRAY[100]), NULL, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, NULL)"),
            Params::of(job.id));
    settled = since(on, before);
  });
  enqueue(200, "demo");
  database->exec(std::string("SELECT count(*) FROM takt.begin_run('more:1', 1, now(), 'more', 2, 'w', 30000, false, 100, false)"));
  database->transaction([&](Session& on) {
    const auto before = total(on);
    on.exec(std::string("SELECT count(*) FROM takt.go_on('{more:1}', '{2}', '{3}', '{0}', '{1}', '{NULL}',"
                        " ARRAY[array_fill(1::real, ARRAY[100])::text], '{NULL}', false, $1, 0, 'w', 30000, 100, true)"),
            Params::of(job.id));
    gone_on = since(on, before);
  });
  EXPECT_EQ(gone_on, (Written{1, 2, 100})) << "the next run; the tick and the run before; the items leave";
  EXPECT_EQ(claimed, (Written{2, 0, 100})) << "the tick and the run; the items leave";
  EXPECT_EQ(settled, (Written{0, 2, 0})) << "the tick and the run are ended; done items are not touched again";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items"), 200);
}

}  // namespace
}  // namespace takt
