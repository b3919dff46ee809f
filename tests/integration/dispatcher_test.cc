#include "dispatcher/dispatcher.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/config/apply.h"
#include "dispatcher/due_scan.h"
#include "dispatcher/lease_rescue.h"
#include "dispatcher/schedule_scan.h"
#include "dispatcher/slot_plan.h"
#include "dispatcher/suspects.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/runs.h"
#include "worker/claim.h"
#include "worker/settle.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct DispatcherTest : testing::Test {
  static Dispatcher::Settings dispatching() {
    Dispatcher::Settings settings;
    settings.scan_interval = 200ms;
    settings.leader_lease = 2s;
    settings.republish_after = 1h;
    settings.retention = {std::chrono::days(7), 72h, 720h};
    return settings;
  }

  std::int64_t last_run = 0;
  TestDatabase database;
  Metrics metrics;
  FakeClock clock;
  Leadership leadership{*database, 60s, clock};

  Term lead() {
    EXPECT_TRUE(leadership.try_lead());
    return leadership.term();
  }
  /// Every schedule is at the slot `due` and fires at `fire`, both SQL.
  void schedules_at(const std::string& due, const std::string& fire) {
    database->exec("UPDATE takt.schedules SET next_due = " + due + ", next_fire = " + fire);
  }
  void schedules_at(const std::string& due) { schedules_at(due, due); }
  DueScan due_scan{*database, clock, 3};
  int due_ticks(const Term& term) { return static_cast<int>(due_scan.run_once(term).ticks.size()); }
  /// Moves the claims of all runs a minute ahead, so that a moment ago stays a moment ago however slow this machine is.
  void claimed_just_now() {
    database->exec(std::string("UPDATE takt.ticks SET begun_at = now() + interval '1 min' WHERE begun_at IS NOT NULL"));
  }
  /// A scan whose next one is due 25 ms after those claims, and a millisecond for rounding.
  DueScan::Result scan_that_waits_for_the_claims(const Term& term) {
    const auto until_claimed = [this] {
      return Duration(database.number("SELECT (extract(epoch FROM max(begun_at) - now()) * 1000)::bigint FROM takt.ticks"));
    };
    const auto before = until_claimed();
    auto soon = due_scan.run_once(term);
    EXPECT_LE(soon.next_in.value(), before + 26ms);
    EXPECT_GE(soon.next_in.value(), until_claimed() + 26ms);
    return soon;
  }
};

TEST_F(DispatcherTest, OneLeadsAndEachChangeRaisesTheTerm) {
  Leadership second(*database, 60s, clock);
  EXPECT_TRUE(leadership.try_lead());
  EXPECT_FALSE(second.try_lead());
  EXPECT_EQ(leadership.term().number, 1);
  EXPECT_TRUE(leadership.try_lead()) << "it renews";
  EXPECT_EQ(leadership.term().number, 1);
  leadership.release();
  EXPECT_TRUE(second.try_lead());
  EXPECT_EQ(second.term().number, 2);
}

TEST_F(DispatcherTest, ALeaderKnowsByItsOwnClockThatItsLeaseIsOver) {
  EXPECT_TRUE(leadership.try_lead());
  EXPECT_TRUE(leadership.leading());
  clock.advance(61s);
  EXPECT_FALSE(leadership.leading());
}

TEST_F(DispatcherTest, ALeaderWhoseTermIsOverWritesNothing) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  const Term old = lead();
  database->exec(std::string("UPDATE takt.leader SET holder = 'another', term = term + 1"));
  schedules_at("date_trunc('second', now())");
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  const auto due_before = database.text("SELECT next_due FROM takt.schedules");
  EXPECT_TRUE(ScheduleScan(*database, metrics).run_once(old, 200ms).ticks.empty());
  EXPECT_EQ(due_ticks(old), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks"), 0);
  EXPECT_EQ(database.text("SELECT next_due FROM takt.schedules"), due_before);
}

TEST_F(DispatcherTest, GoesOnFromTheLastSlotRecordedNotFromItsStart) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *', payload: {hello: world}}]"));
  schedules_at("date_trunc('second', now()) - interval '9 s'", "now()");
  const Term term = lead();
  ScheduleScan scan(*database, metrics);
  const auto first = scan.run_once(term, 200ms);
  EXPECT_GE(first.ticks.size(), 10U);
  EXPECT_NE(first.ticks[0].items.find("world"), std::string::npos);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks"), static_cast<std::int64_t>(first.ticks.size()));
  EXPECT_EQ(database.number("SELECT count(DISTINCT due_at) FROM takt.ticks"), static_cast<std::int64_t>(first.ticks.size()));
}

TEST_F(DispatcherTest, StoresASlotShortlyBeforeItIsDueAndItsTickSaysWhenItLeaves) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '0 0 1 1 *'}]"));
  const Term term = lead();
  ScheduleScan scan(*database, metrics);
  schedules_at("now() + interval '10 s'");
  const auto far = scan.run_once(term, 20s);
  EXPECT_TRUE(far.ticks.empty());
  ASSERT_TRUE(far.next_in) << "seen though it is still too early";
  EXPECT_LE(*far.next_in, 10s - ScheduleScan::kAhead);
  EXPECT_GT(*far.next_in, 5s);
  schedules_at("now() + interval '300 ms'");
  const auto due = database.text("SELECT (extract(epoch FROM next_due) * 1000000)::bigint FROM takt.schedules");
  const auto near = scan.run_once(term, 1s);
  ASSERT_EQ(near.ticks.size(), 1U);
  EXPECT_EQ(std::to_string(to_unix_us(near.ticks[0].due_at)), due);
  EXPECT_EQ(near.ticks[0].fire_at, near.ticks[0].due_at);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NULL AND publish_at = due_at"), 1);
  EXPECT_TRUE(scan.run_once(term, 1s).ticks.empty()) << "each slot once";
}

TEST_F(DispatcherTest, AScheduleThatFiresEverySecondIsStoredInTimeEachTime) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  const Term term = lead();
  ScheduleScan scan(*database, metrics);
  schedules_at("date_trunc('second', now())");
  const auto round = scan.run_once(term, 1s);
  EXPECT_FALSE(round.ticks.empty());
  ASSERT_TRUE(round.next_in) << "the slot after those that were just stored";
  EXPECT_LE(*round.next_in, 1s);
}

TEST_F(DispatcherTest, PausingStopsASlotThatIsStoredAhead) {
  database.apply(plain_job("demo", "schedules: [{name: a, cron: '0 0 1 1 *'}, {name: b, cron: '0 0 1 1 *'}]"));
  const Term term = lead();
  schedules_at("now() + interval '400 ms'");
  const auto held = ScheduleScan(*database, metrics).run_once(term, 1s).ticks;
  ASSERT_EQ(held.size(), 2U);
  const auto arrives = [&](const TickRow& tick) {
    return claim_batch(*database, {database.job("demo"), tick.id, tick.due_at, "schedule", 77, "worker", 10, false}).outcome;
  };
  const auto& [a, b] = held[0].id.starts_with("demo/a@") ? std::tie(held[0], held[1]) : std::tie(held[1], held[0]);
  ASSERT_EQ(set_schedule_paused(*database, "demo", "a", true, "test"), Pausing::changed);
  EXPECT_EQ(arrives(a), ClaimOutcome::duplicate) << "as if it had been done before";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 1) << "the other schedule's";
  ASSERT_EQ(set_job_paused(*database, "demo", true, "test"), Pausing::changed);
  EXPECT_EQ(arrives(b), ClaimOutcome::duplicate);
}

TEST_F(DispatcherTest, ASlotThatWasStoppedAheadComesBackWhereItsScheduleGoesOnInTime) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *', payload: {}}]"));
  const Term term = lead();
  ScheduleScan scan(*database, metrics);
  schedules_at("date_trunc('second', now()) + interval '1 s'");
  std::vector<TickRow> held;
  ASSERT_TRUE(eventually([&] { return !(held = scan.run_once(term, 1s).ticks).empty(); }));
  ASSERT_EQ(set_schedule_paused(*database, "demo", "s", true, "test"), Pausing::changed);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 0);
  ASSERT_EQ(set_schedule_paused(*database, "demo", "s", false, "test"), Pausing::changed);
  schedules_at("'" + format_rfc3339(held[0].due_at) + "'");  // as resuming does, were this test as fast each time
  const auto again = scan.run_once(term, 1s).ticks;
  ASSERT_FALSE(again.empty());
  EXPECT_EQ(again[0].id, held[0].id);
  EXPECT_EQ(
      database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND items IS NOT NULL AND id = '" + held[0].id + "'"), 1);
  database->exec("UPDATE takt.ticks SET published_at = now(), begun_at = now(), finished_at = now() WHERE id = '" + held[0].id + "'");
  schedules_at("'" + format_rfc3339(held[0].due_at) + "'");
  for (const auto& tick : scan.run_once(term, 1s).ticks) EXPECT_NE(tick.id, held[0].id) << "what has run is over";
}

TEST_F(DispatcherTest, AChangedOrRemovedScheduleHasNoTickForTheSlotThatWasStoredAhead) {
  const auto with = [](const std::string& a) { return plain_job("demo", "schedules: [" + a + "{name: b, cron: '0 0 1 1 *'}]"); };
  const auto held = [&] {
    return database.text(
        "SELECT coalesce(string_agg(split_part(id, '@', 1), ' ' ORDER BY id), '') FROM takt.ticks WHERE finished_at IS NULL");
  };
  const auto store = [&](const Term& term) {
    schedules_at("now() + interval '400 ms'");
    ScheduleScan(*database, metrics).run_once(term, 1s);
  };
  database.apply(with("{name: a, cron: '0 0 1 1 *'},"));
  const Term term = lead();
  store(term);
  EXPECT_EQ(held(), "demo/a demo/b");
  database.apply(with("{name: a, cron: '0 0 1 1 *', misfire: skip},"));
  EXPECT_EQ(held(), "demo/a demo/b") << "at the same times";
  database.apply(with("{name: a, cron: '0 0 2 1 *'},"));
  EXPECT_EQ(held(), "demo/b");
  store(term);
  EXPECT_EQ(held(), "demo/a demo/b demo/b");
  database.apply(with(""));
  EXPECT_EQ(held(), "demo/b demo/b");
}

TEST_F(DispatcherTest, ASlotThatIsStoredAheadKeepsNoDueItemWaiting) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '0 0 1 1 *'}]"));
  const Term term = lead();
  schedules_at("now() + interval '450 ms'");
  ASSERT_EQ(ScheduleScan(*database, metrics).run_once(term, 1s).ticks.size(), 1U);
  database->exec(std::string("UPDATE takt.ticks SET publish_at = now() + interval '1 min'"));  // however slow this test is
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_ticks(term), 1);
}

TEST_F(DispatcherTest, WhatALostLeaderStoredAheadGoesBackToItsScheduleOnceItIsMissed) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *', misfire: skip}, {name: s-s, cron: '0 0 1 1 *'}]"));
  const auto base = database.text("SELECT extract(epoch FROM now())::bigint");
  database->exec("CREATE FUNCTION slot(minutes integer) RETURNS timestamptz LANGUAGE sql AS $$ SELECT to_timestamp(" + base +
                 ") - minutes * interval '1 min' $$");
  database->exec(std::string(R"sql(
    CREATE FUNCTION store(minutes integer, created timestamptz) RETURNS void LANGUAGE sql AS $$
      INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at)
      SELECT 'demo/s@' || to_char(slot(minutes) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 1, 'schedule', slot(minutes), created $$)sql"));
  const auto unsent = [&] {
    return database.text(
        "SELECT coalesce(string_agg(extract(epoch FROM slot(0) - due_at)::integer / 60 || '', ' ' ORDER BY due_at), '') FROM takt.ticks "
        "WHERE published_at IS NULL AND finished_at IS NULL");
  };
  const auto run = [&](const std::string& sql) { database->exec(sql); };
  run("UPDATE takt.schedules SET next_due = slot(9), next_fire = slot(9) WHERE name = 's'");
  run("SELECT store(10, slot(10)), store(11, slot(11) + interval '1 ms'), store(12, slot(12)), store(13, slot(13)), store(0, slot(0))");
  run("UPDATE takt.ticks SET published_at = now() WHERE due_at = slot(12)");
  run("UPDATE takt.ticks SET begun_at = now() WHERE due_at = slot(13)");
  ScheduleScan scan(*database, metrics);
  EXPECT_EQ(scan.inherit({"another", 1}, 1h).taken_back, 0) << "not a leader";
  const Term term = lead();
  const auto inherited = scan.inherit(term, 1min);
  EXPECT_EQ(inherited.taken_back, 1);
  ASSERT_EQ(inherited.ticks.size(), 1U) << "to be sent in time by who leads now";
  EXPECT_EQ(inherited.ticks[0].queue, "default");
  EXPECT_EQ(to_unix_us(inherited.ticks[0].fire_at), std::stoll(base) * 1'000'000);
  EXPECT_TRUE(scan.inherit(term, -1s).ticks.empty()) << "the sweep's already";
  EXPECT_EQ(unsent(), "13 11 0") << "begun; stored when it was due; not late enough";
  EXPECT_EQ(database.text("SELECT next_due = slot(10) AND next_fire = slot(10) FROM takt.schedules WHERE name = 's'"), "t");
  EXPECT_EQ(scan.inherit(term, 1min).taken_back, 0);
  scan.run_once(term, 1s);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE due_at = slot(10)"), 0) << "misfire: skip";
}

TEST_F(DispatcherTest, ATickLeavesAfterItsSlotsJitter) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *', jitter: 10s}]"));
  const Term term = lead();
  schedules_at("date_trunc('second', now()) - interval '30 s'", "now()");
  const auto ticks = ScheduleScan(*database, metrics).run_once(term, 1s).ticks;
  ASSERT_GE(ticks.size(), 20U);
  int later = 0;
  for (const auto& tick : ticks) {
    EXPECT_EQ(tick.fire_at, tick.due_at + slot_jitter("demo/s", tick.due_at, 10s));
    later += tick.fire_at > tick.due_at ? 1 : 0;
  }
  EXPECT_GT(later, 10);
}

TEST_F(DispatcherTest, MakesOneTickASlotWhoeverScans) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  const Term term = lead();
  std::vector<std::thread> threads;
  std::atomic<int> made{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      ScheduleScan scan(*database, metrics);
      for (int round = 0; round < 25; ++round) {
        made += static_cast<int>(scan.run_once(term, 200ms).ticks.size());
        schedules_at("date_trunc('second', now()) - interval '3 s'", "now()");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(made.load(), database.number("SELECT count(*) FROM takt.ticks"));
  EXPECT_EQ(database.number("SELECT count(*) - count(DISTINCT due_at) FROM takt.ticks"), 0);
}

TEST_F(DispatcherTest, PausedSchedulesAndJobsDoNotTickAndGoOnFromNow) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  const Term term = lead();
  ASSERT_EQ(set_schedule_paused(*database, "demo", "s", true, "test"), Pausing::changed);
  schedules_at("date_trunc('second', now()) - interval '30 s'", "now()");
  EXPECT_TRUE(ScheduleScan(*database, metrics).run_once(term, 200ms).ticks.empty());
  ASSERT_EQ(set_schedule_paused(*database, "demo", "s", false, "test"), Pausing::changed);
  EXPECT_LE(ScheduleScan(*database, metrics).run_once(term, 200ms).ticks.size(), 1U) << "none of the slots in between";
  ASSERT_EQ(set_job_paused(*database, "demo", true, "test"), Pausing::changed);
  database->exec(std::string("UPDATE takt.schedules SET next_fire = now() - interval '5 s'"));
  EXPECT_TRUE(ScheduleScan(*database, metrics).run_once(term, 200ms).ticks.empty());
  EXPECT_EQ(set_job_paused(*database, "nobody", true, "test"), Pausing::unknown);
}

TEST_F(DispatcherTest, WakesAJobOnceAndMoreOnlyWhileItReportsMore) {
  database.apply(plain_job("demo", "batch_size: 1") + plain_job("idle") + plain_job("solo", "concurrency: 1"));
  const Term term = lead();
  EXPECT_EQ(due_ticks(term), 0);
  database->exec(
      std::string("SELECT takt.enqueue('demo'), takt.enqueue('demo', priority => 5), takt.enqueue('solo') FROM generate_series(1, 50)"));
  const auto first = due_scan.run_once(term);
  EXPECT_EQ(first.ticks.size(), 2U) << "one for each job that has something due";
  EXPECT_FALSE(first.growing) << "nobody knows yet that one is not enough";
  EXPECT_EQ(due_ticks(term), 0) << "they are under way";
  database->exec(std::string(
      "INSERT INTO takt.ticks (id, job_id, source, due_at, published_at) SELECT 'more:' || id, id, 'more', now(), now() FROM takt.jobs"));
  const auto further = due_scan.run_once(term);
  EXPECT_EQ(further.ticks.size(), 1U) << "the backlog of demo deserves a further one; solo takes one at a time";
  EXPECT_TRUE(further.growing) << "the next look comes soon";
  const auto last = due_scan.run_once(term);
  EXPECT_EQ(last.ticks.size(), 0U) << "and no more than parallel_ticks";
  EXPECT_FALSE(last.growing);
}

TEST_F(DispatcherTest, ReplacesAWakeTickThatWasLost) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_ticks(term), 1);
  clock.advance(9s);
  EXPECT_EQ(due_ticks(term), 0);
  clock.advance(2s);
  EXPECT_EQ(due_ticks(term), 1);
}

TEST_F(DispatcherTest, AWakeTickNeedsNoRowUntilAWorkerBeginsIt) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  // A session that may not write: a commit that would have to be synced is refused.
  Database reader(Secret(database.url() + "?options=-c%20default_transaction_read_only%3Don"), one_connection());
  EXPECT_THROW(reader.exec(std::string("SELECT takt.enqueue('demo')")), DatabaseUnavailable);
  const auto first = DueScan(reader, clock, 3).run_once(term);
  ASSERT_EQ(first.ticks.size(), 1U);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks"), 0);

  const auto job = database.job("demo");
  EXPECT_EQ(claim_batch(*database, {job, first.ticks[0].id, clock.now(), "due", 1, "w", 10}).items.size(), 1U);
  claimed_just_now();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_ticks(term), 0) << "it is under way";
  database->exec(std::string("UPDATE takt.ticks SET finished_at = now(), lease_until = NULL"));
  EXPECT_EQ(due_ticks(term), 1) << "the run is over and did not see the second item";
}

TEST_F(DispatcherTest, AWakeTickThatWasNotSentIsMadeAgainAtOnce) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  const auto result = due_scan.run_once(term);
  ASSERT_EQ(result.ticks.size(), 1U);
  due_scan.not_sent(result.ticks[0].id);
  EXPECT_EQ(due_ticks(term), 1);
}

TEST_F(DispatcherTest, KnowsWhenTheNextItemIsDue) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo', run_at => now() + interval '10 s')"));
  const auto result = due_scan.run_once(term);
  EXPECT_TRUE(result.ticks.empty());
  ASSERT_TRUE(result.next_in);
  EXPECT_LE(*result.next_in, 10s);
  EXPECT_GT(*result.next_in, 9s);
}

TEST_F(DispatcherTest, IsQuietWhileNothingIsDueAndNoTickIsOnItsWay) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  EXPECT_TRUE(due_scan.run_once(term).quiet);
  database->exec(std::string("SELECT takt.enqueue('demo', run_at => now() + interval '1 hour')"));
  EXPECT_TRUE(due_scan.run_once(term).quiet) << "that is known to be later";
  database->exec(std::string("INSERT INTO takt.ticks (id, job_id, source, due_at) SELECT 'slot', id, 'schedule', now() FROM takt.jobs"));
  EXPECT_FALSE(due_scan.run_once(term).quiet) << "a worker may have it, die of it, or put items back";
  database->exec(std::string("UPDATE takt.ticks SET finished_at = now()"));
  EXPECT_TRUE(due_scan.run_once(term).quiet);
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_FALSE(due_scan.run_once(term).quiet);
  EXPECT_FALSE(due_scan.run_once(term).quiet) << "the wake tick has no row yet";
}

TEST_F(DispatcherTest, TicksThatWentWithAConnectionAreMadeAgainAtOnce) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_ticks(term), 1);
  EXPECT_EQ(due_ticks(term), 0);
  due_scan.forget_sent();
  EXPECT_EQ(due_ticks(term), 1);
}

TEST_F(DispatcherTest, DoesNotWakeAJobThatTakesOneBatchATick) {
  database.apply(plain_job("demo", "drain: false"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_scan.look_at(term, {"demo"}).size(), 0U);
  EXPECT_EQ(due_ticks(term), 0);
}

TEST_F(DispatcherTest, ALookAtAJobThatWasEnqueuedForWakesItWhereNoTickIsUnderWay) {
  database.apply(plain_job("demo") + plain_job("other") + plain_job("idle"));
  const Term term = lead();
  const auto woken = [&](const std::set<std::string>& jobs) { return due_scan.look_at(term, jobs); };
  const auto sql = [&](const std::string& text) { database->exec(text); };
  sql("SELECT takt.enqueue('demo'), takt.enqueue('other'), takt.enqueue('idle', run_at => now() + interval '1 h')");
  EXPECT_EQ(woken({"idle", "nobody"}).size(), 0U);
  EXPECT_EQ(due_scan.look_at({"another", 1}, {"demo"}).size(), 0U) << "not a leader";
  for (const std::string hindrance : {"paused = true", "removed_at = now()", "held_until = now() + interval '1 h'"}) {
    sql("UPDATE takt.jobs SET " + hindrance);
    EXPECT_EQ(woken({"demo"}).size(), 0U) << hindrance;
    sql("UPDATE takt.jobs SET paused = false, removed_at = NULL, held_until = NULL");
  }
  const auto ticks = woken({"demo", "idle"});
  ASSERT_EQ(ticks.size(), 1U);
  EXPECT_EQ(ticks[0].job, "demo");
  EXPECT_EQ(ticks[0].queue, "default");
  EXPECT_EQ(std::to_string(to_unix_us(ticks[0].due_at)),
            database.text("SELECT (extract(epoch FROM run_at) * 1000000)::bigint FROM takt.items ORDER BY id LIMIT 1"));
  EXPECT_EQ(woken({"demo"}).size(), 0U) << "it is on its way";
  const auto rest = due_scan.run_once(term).ticks;
  ASSERT_EQ(rest.size(), 1U) << "the scan knows of the first";
  EXPECT_EQ(rest[0].job, "other");
  claim_batch(*database, {database.job("demo"), ticks[0].id, ticks[0].due_at, "due", 1, "worker", 10, false});
  claimed_just_now();
  sql("SELECT takt.enqueue('demo')");
  EXPECT_EQ(woken({"demo"}).size(), 0U) << "a run goes on";
  sql("UPDATE takt.ticks SET finished_at = now(), lease_until = NULL");
  EXPECT_EQ(woken({"demo"}).size(), 1U) << "that one is over, and no scan was needed to learn of it";
}

TEST_F(DispatcherTest, AJobThatAScanFoundIdleIsWokenOnceWithoutALook) {
  database.apply(plain_job("demo") + plain_job("other"));
  const Term term = lead();
  const auto sql = [&](const std::string& text) { database->exec(text); };
  const auto woken = [&] {
    std::set<std::string> jobs{"demo", "other"};
    const auto ticks = due_scan.wake_idle(jobs, from_unix_us(1'700'000'000'000'000));
    EXPECT_EQ(jobs.size(), 2 - ticks.size()) << "what was woken needs no look";
    for (const auto& tick : ticks) {
      EXPECT_EQ(tick.job, "demo");
      EXPECT_EQ(tick.queue, "default");
      EXPECT_EQ(to_unix_us(tick.due_at), 1'700'000'000'000'000);
    }
    return ticks.size();
  };
  EXPECT_EQ(woken(), 0U) << "nobody knows it";
  sql("SELECT takt.enqueue('demo')");
  const auto first = due_scan.look_at(term, {"demo"});
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(woken(), 0U) << "its tick is on its way";
  EXPECT_EQ(due_ticks(term), 0);
  EXPECT_EQ(woken(), 0U) << "and still is";
  claim_batch(*database, {database.job("demo"), first[0].id, first[0].due_at, "due", 1, "worker", 10, false});
  EXPECT_EQ(due_ticks(term), 0);
  EXPECT_EQ(woken(), 0U) << "a run goes on";
  sql("UPDATE takt.ticks SET finished_at = now(), lease_until = NULL");
  EXPECT_EQ(woken(), 0U) << "no scan has seen that it is over";
  for (const std::string hindrance : {"paused = true", "removed_at = now()", "held_until = now() + interval '1 h'",
                                      "definition = jsonb_set(definition, '{drain}', 'false')"}) {
    sql("UPDATE takt.jobs SET " + hindrance);
    EXPECT_EQ(due_ticks(term), 0);
    EXPECT_EQ(woken(), 0U) << hindrance;
    sql("UPDATE takt.jobs SET paused = false, removed_at = NULL, held_until = NULL, definition = jsonb_set(definition, '{drain}', 'true')");
  }
  EXPECT_EQ(due_ticks(term), 0);
  EXPECT_EQ(woken(), 1U);
  EXPECT_EQ(woken(), 0U) << "once a scan";
  EXPECT_EQ(due_scan.look_at(term, {"demo"}).size(), 0U) << "a look knows of that tick";
  due_scan.forget_sent();
  EXPECT_EQ(due_ticks(term), 0);
  clock.advance(2s);
  EXPECT_EQ(woken(), 0U) << "what was known is old";
}

TEST_F(DispatcherTest, F1_AStandbyIsReadyAgainWhenPostgreSQLIs) {
  database->exec(std::string("UPDATE takt.leader SET holder = 'another', term = 1, until = now() + interval '1 h'"));
  Database pool(Secret(database.url()), one_connection()), vital(Secret(database.url()), one_connection());
  amqp::Publisher first(nowhere(), {}), second(nowhere(), {});
  const auto keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  const SystemClock real;
  Dispatcher dispatcher(pool, vital, first, second, keys, real, metrics, dispatching());
  dispatcher.start();
  const auto ready = [&] {
    for (const auto& part : dispatcher.health()) {
      if (part.name == "database") return part.ok;
    }
    return false;
  };
  ASSERT_TRUE(eventually(ready));
  EXPECT_THROW(pool.exec(std::string("SELECT pg_terminate_backend(pg_backend_pid())")), DatabaseUnavailable);
  EXPECT_TRUE(eventually(ready)) << "though a standby has nothing to ask the pool";
  EXPECT_FALSE(dispatcher.leading());
  dispatcher.stop();
}

TEST_F(DispatcherTest, C22_AnItemDoesNotWaitForARunThatIsAtWorkForLong) {
  database.apply(plain_job("demo") + plain_job("alone", "concurrency: 1"));
  const Term term = lead();
  std::int64_t run = 0;
  const auto sql = [&](const std::string& text) { database->exec(text); };
  const auto begin = [&](const TickRow& tick) {
    claim_batch(*database, {database.job(tick.job), tick.id, tick.due_at, "due", ++run, "worker", 10, false});
    claimed_just_now();
  };
  const auto claimed_a_second_ago = [&] { sql("UPDATE takt.ticks SET begun_at = now() - interval '1 s'"); };
  sql("SELECT takt.enqueue('demo'), takt.enqueue('alone')");
  const auto first = due_scan.run_once(term).ticks;
  ASSERT_EQ(first.size(), 2U);
  for (const auto& tick : first) begin(tick);
  sql("SELECT takt.enqueue('demo'), takt.enqueue('alone')");
  EXPECT_EQ(scan_that_waits_for_the_claims(term).ticks.size(), 0U) << "most runs are over in a moment, and take what is due then";

  claimed_a_second_ago();
  const auto looked_at = due_scan.look_at(term, {"demo", "alone"});
  ASSERT_EQ(looked_at.size(), 1U) << "the other's limit is one run";
  EXPECT_EQ(looked_at[0].job, "demo");
  EXPECT_EQ(due_ticks(term), 0) << "one that nobody has begun waits for a place; a further one would wait behind it";
  EXPECT_EQ(due_scan.look_at(term, {"demo", "alone"}).size(), 0U);
  begin(looked_at[0]);
  for (int further = 3; further <= 8; ++further) {
    sql("SELECT takt.enqueue('demo')");
    EXPECT_EQ(due_ticks(term), 0) << "one of its runs claimed a moment ago";
    claimed_a_second_ago();
    const auto tick = due_scan.run_once(term).ticks;
    ASSERT_EQ(tick.size(), 1U) << "beyond parallel_ticks, too: run " << further;
    begin(tick[0]);
  }
  claimed_a_second_ago();
  EXPECT_EQ(due_ticks(term), 0) << "nothing is due but what waits for the job's one run";
  sql("SELECT takt.enqueue('demo') FROM generate_series(1, 101)");
  EXPECT_EQ(due_ticks(term), 0) << "with more than a run takes, parallel_ticks is the limit";
  EXPECT_EQ(due_scan.look_at(term, {"demo"}).size(), 0U);
  sql("DELETE FROM takt.items WHERE id = (SELECT max(id) FROM takt.items)");
  EXPECT_EQ(due_ticks(term), 1);
  sql("DELETE FROM takt.items");
  due_scan.forget_sent();
  sql("UPDATE takt.jobs SET paused = true");
  sql("SELECT takt.enqueue('demo')");
  EXPECT_EQ(due_ticks(term), 0);
}

TEST_F(DispatcherTest, C22_NorForRunsThatGoOn) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  std::int64_t run = 0;
  const auto sql = [&](const std::string& text) { database->exec(text); };
  for (int i = 1; i <= 3; ++i) {
    sql("SELECT takt.enqueue('demo')");
    claim_batch(*database, {database.job("demo"), "due:" + std::to_string(i), SystemClock().now(), "due", ++run, "worker", 10, false});
  }
  sql("UPDATE takt.ticks SET source = 'more', begun_at = begun_at - interval '1 s'");
  EXPECT_EQ(due_ticks(term), 0) << "nothing is due";
  sql("SELECT takt.enqueue('demo')");
  EXPECT_EQ(due_ticks(term), 1) << "as many as parallel_ticks work off what was a backlog, each with slow items";
  due_scan.forget_sent();
  sql("SELECT takt.enqueue('demo') FROM generate_series(1, 100)");
  EXPECT_EQ(due_ticks(term), 0) << "more than a run takes";
  claimed_just_now();
  EXPECT_GT(due_scan.run_once(term).next_in, 1h) << "of a backlog the runs themselves see to it";
  sql("DELETE FROM takt.items WHERE id > 50");
  scan_that_waits_for_the_claims(term);
}

TEST_F(DispatcherTest, ATickThatNoWorkerBeginsIsReplacedAfterALongerAndLongerTime) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(due_ticks(term), 1);
  std::string last;
  for (const auto wait : {10s, 20s, 40s, 80s, 160s, 300s, 300s}) {
    clock.advance(wait - 1s);
    EXPECT_EQ(due_ticks(term), 0) << wait.count();
    clock.advance(2s);
    const auto again = due_scan.run_once(term).ticks;
    ASSERT_EQ(again.size(), 1U) << wait.count();
    EXPECT_TRUE(again[0].again) << "the one before may have been lost on its way";
    last = again[0].id;
  }
  claim_batch(*database, {database.job("demo"), last, SystemClock().now(), "due", 1, "worker", 10, false});
  database->exec(std::string("UPDATE takt.ticks SET finished_at = now(), lease_until = NULL"));
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  const auto next = due_scan.run_once(term).ticks;
  ASSERT_EQ(next.size(), 1U);
  EXPECT_FALSE(next[0].again);
  clock.advance(11s);
  const auto found = due_scan.run_once(term).ticks;
  ASSERT_EQ(found.size(), 1U) << "there are workers again";
  EXPECT_TRUE(found[0].again);
}

TEST_F(DispatcherTest, AnEnqueueNotifiesOfItsJob) {
  database.apply(plain_job("demo") + plain_job("other"));
  const auto listening = database->dedicated();
  EXPECT_TRUE(listening->wait_notifications(0ms).empty());
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  EXPECT_EQ(listening->wait_notifications(10s), std::set<std::string>{"demo"});
  database->exec(std::string("SELECT takt.enqueue('demo', run_at => now() + interval '1 h')"));
  database->exec(std::string("SELECT * FROM takt.enqueue_many('other', ARRAY['{}'::jsonb])"));
  EXPECT_EQ(listening->wait_notifications(10s), std::set<std::string>{"other"}) << "and not of what is due later";
  database->exec(std::string("SELECT pg_notify('takt_due', 'j' || n) FROM generate_series(1, 1000) n"));
  const auto many = listening->wait_notifications(10s);
  EXPECT_EQ(many.size(), 64U);
  EXPECT_TRUE(many.contains("")) << "for those that are left out";
}

// The scan's plan must not visit the backlog: its cost is a probe a job, not a row an item.
TEST_F(DispatcherTest, TheDueScanDoesNotGrowWithTheBacklog) {
  database.apply(plain_job("a") + plain_job("b") + plain_job("c"));
  lead();
  const auto rows_read = [&](int items) {
    database->exec("INSERT INTO takt.items (job_id, run_at) SELECT 1 + n % 3, now() - interval '1 s' FROM generate_series(1, " +
                   std::to_string(items) + ") n");
    database->exec(std::string("ANALYZE takt.items"));
    const auto plan = database->exec(std::string(R"(EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
      WITH RECURSIVE heads AS (
        (SELECT i.job_id, i.priority, i.run_at FROM takt.items i WHERE i.state = 0 ORDER BY i.job_id, i.priority, i.run_at LIMIT 1)
        UNION ALL
        SELECT n.job_id, n.priority, n.run_at FROM heads h CROSS JOIN LATERAL (
          SELECT i.job_id, i.priority, i.run_at FROM takt.items i WHERE i.state = 0 AND (i.job_id, i.priority) > (h.job_id, h.priority)
           ORDER BY i.job_id, i.priority, i.run_at LIMIT 1) n)
      SELECT * FROM heads)"));
    const auto json = nlohmann::json::parse(plan.text(0, 0));
    return json[0]["Plan"]["Shared Hit Blocks"].get<int>() + json[0]["Plan"]["Shared Read Blocks"].get<int>();
  };
  const int small = rows_read(300), large = rows_read(60000);
  EXPECT_LT(large, small + 60) << small << " blocks with 300 items, " << large << " with 60,000";
}

TEST_F(DispatcherTest, ReturnsItemsOfALostWorkerAndCountsTheAttempt) {
  database.apply(plain_job("demo", "max_attempts: 2"));
  const auto job = database.job("demo");
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo', key => 'k')"));
  for (int attempt = 1; attempt <= 2; ++attempt) {
    const std::string tick = "external-" + std::to_string(attempt);
    ASSERT_EQ(claim_batch(*database, {job, tick, SystemClock().now(), "external", attempt, "w", 10}).items.size(), 1U);
    EXPECT_EQ(rescue_expired_leases(*database, term, 10).runs, 0) << "its lease holds";
    database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
    const auto rescued = rescue_expired_leases(*database, term, 10);
    EXPECT_EQ(rescued.runs, 1);
    EXPECT_EQ(rescued.returned, attempt == 1 ? 1 : 0);
    EXPECT_EQ(rescued.dead, attempt == 2 ? 1 : 0);
    EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NULL AND begun_at IS NULL AND run_id IS NULL"),
              attempt)
        << "the tick is to be published again";
  }
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'failed'"), 2);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'"), 2);
  EXPECT_EQ(database.text("SELECT body->>'attempts' FROM takt.dead_letter_outbox"), "2");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.running_items"), 0);
}

TEST_F(DispatcherTest, Finding7_AnItemThatKillsItsWorkerDiesAloneAndNoneOfItsCompanyIsLost) {
  database.apply(plain_job("demo", "batch_size: 20, max_attempts: 3"));
  const auto job = database.job("demo");
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo', jsonb_build_object('poison', n = 7)) FROM generate_series(1, 20) n"));
  std::map<std::int64_t, int> calls;
  int crashes = 0;
  std::int64_t run_id = 0;
  // A worker that handles what it is given, in order, and vanishes at the poison. It holds an empty run of another job as well.
  const auto work = [&](const std::string& tick) {
    const auto worker = "w" + std::to_string(++run_id);
    const auto claim = claim_batch(*database, {job, tick, SystemClock().now(), tick_source(tick), run_id, worker, 20});
    for (const auto& item : claim.items) {
      ++calls[item.id];
      if (item.payload.find("true") == std::string::npos) continue;
      ++crashes;
      claim_batch(*database, {job, "manual:" + worker, SystemClock().now(), "manual", ++run_id, worker, 0});
      database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
      return;
    }
    settle_run(*database, ended(tick, run_id, job, claim));
  };
  for (int round = 0; round < 100 && database.number("SELECT count(*) FROM takt.items") > 0; ++round) {
    if (database.number("SELECT count(*) FROM takt.items WHERE state = 0") > 0) work("due:" + std::to_string(round));
    rescue_expired_leases(*database, term, 10);
    const auto suspects = wake_next_suspect(*database, term);
    if (!suspects.tick) continue;
    EXPECT_FALSE(wake_next_suspect(*database, term).tick) << "one at a time";
    work(suspects.tick->id);
    rescue_expired_leases(*database, term, 10);
  }
  EXPECT_EQ(crashes, 4) << "one more than the poison has attempts, since each time its worker held something else, too";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 3"), 1);
  EXPECT_EQ(database.text("SELECT body->>'itemId' FROM takt.dead_letter_outbox"), "7");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 2"), 19);
  for (const auto& [item, count] : calls)
    EXPECT_LE(count, item == 7 ? 4 : 3) << "item " << item << ": once, and once for each crash it was in";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0);
}

// Another item may kill the worker at which a suspect is tried alone.
TEST_F(DispatcherTest, C10_Finding7_ASuspectIsNotBlamedForWhatRanBesideIt) {
  database.apply(plain_job("demo", "max_attempts: 1") + plain_job("other"));
  const Term term = lead();
  std::int64_t run = 0;
  const auto lose = [&](const std::string& tick, bool company) {
    const auto worker = "w" + std::to_string(++run);
    const auto items = claim_batch(*database, {database.job("demo"), tick, SystemClock().now(), tick_source(tick), run, worker, 1}).items;
    EXPECT_EQ(items.size(), 1U) << tick;
    ++run;
    if (company) claim_batch(*database, {database.job("other"), "due:" + worker, SystemClock().now(), "due", run, worker, 0});
    database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
    return rescue_expired_leases(*database, term, 10);
  };
  const auto alone = [&] {
    const auto found = wake_next_suspect(*database, term);
    return found.tick ? found.tick->id : "";
  };
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  lose("due:1", true);
  lose("due:2", true);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE state = 6"), 1) << "a suspect";
  EXPECT_EQ(lose(alone(), false).dead, 1) << "nothing else was there";
  database->exec(std::string("SELECT takt.enqueue('demo')"));
  lose("due:3", true);
  EXPECT_EQ(lose("due:4", true).dead, 0);
  database->exec(std::string("UPDATE takt.jobs SET max_attempts = 3 WHERE name = 'demo'"));
  EXPECT_EQ(lose(alone(), true).dead, 0) << "its last attempt, with company";
  EXPECT_EQ(lose(alone(), true).dead, 1) << "one attempt later it dies all the same";
  EXPECT_EQ(database.text("SELECT string_agg(attempts::text, ' ' ORDER BY id) FROM takt.finished_items"), "3 4");
}

TEST_F(DispatcherTest, C10_Finding7_WhatALostWorkerHeldIsNoLessItsCompanyWhereItsLeasesEndOneAfterTheOther) {
  database.apply(plain_job("demo", "max_attempts: 1") + plain_job("other", "lease: 5m"));
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo'), takt.enqueue('other')"));
  ASSERT_EQ(claim_batch(*database, {database.job("other"), "due:1", SystemClock().now(), "due", 1, "gone", 1}).items.size(), 1U);
  ASSERT_EQ(claim_batch(*database, {database.job("demo"), "due:2", SystemClock().now(), "due", 2, "gone", 1}).items.size(), 1U);
  for (int run = 1; run <= 2; ++run) {
    database->exec("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE run_id = " + std::to_string(run));
    EXPECT_EQ(rescue_expired_leases(*database, term, 10).returned, 1) << run;
  }
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 2) << "the last one was not all that its worker held";
}

// A rescue of many large runs is beyond PostgreSQL's limits, or the time for a statement; here, of more than so many.
TEST_F(DispatcherTest, C10_Finding7_LeasesThatAreTooLargeTogetherAreRescuedInParts) {
  for (const std::string sqlstate : {"54000", "53200", "57014"}) {
    TestDatabase other;
    other.apply(plain_job("demo", "max_attempts: 1"));
    const auto job = other.job("demo");
    Leadership leads(*other, 60s, clock);
    ASSERT_TRUE(leads.try_lead());
    other->exec(std::string("SELECT takt.enqueue('demo', jsonb_build_object('n', n)) FROM generate_series(1, 12) n"));
    for (int run = 1; run <= 12; ++run) {
      ASSERT_EQ(claim_batch(*other, {job, "due:" + std::to_string(run), SystemClock().now(), "due", run, "gone", 1}).items.size(), 1U);
    }
    other->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' * run_id"));
    // Item 7 is too large by itself. A sequence counts the statements, since what fails is rolled back.
    other->exec("CREATE SEQUENCE public.statements");
    other->exec(R"(CREATE FUNCTION public.limited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM nextval('public.statements');
        IF (SELECT count(*) > 3 OR bool_or(payload->>'n' = '7') FROM stored) THEN RAISE 'too much' USING ERRCODE = ')" +
                sqlstate + R"('; END IF;
        RETURN NULL; END $$)");
    other->exec(
        std::string("CREATE TRIGGER limited AFTER INSERT ON takt.items REFERENCING NEW TABLE AS stored"
                    " FOR EACH STATEMENT EXECUTE FUNCTION public.limited()"));

    const auto rescued = rescue_expired_leases(*other, leads.term(), 100);
    EXPECT_EQ(rescued.runs, 11) << sqlstate;
    EXPECT_EQ(rescued.returned, 11) << "one at its last attempt is not blamed for what its worker did with the others";
    EXPECT_EQ(rescued.dead, 0);
    EXPECT_EQ(other.number("SELECT count(*) FROM takt.items"), 11);
    EXPECT_EQ(other.text("SELECT payload->>'n' FROM takt.running_items"), "7");
    EXPECT_EQ(other.number("SELECT count(*) FROM takt.ticks WHERE lease_until > now() AND run_id = 7"), 1) << "it is looked at again";
    EXPECT_LE(other.number("SELECT last_value FROM public.statements"), 20) << "each size is tried once";
    EXPECT_EQ(rescue_expired_leases(*other, leads.term(), 100).runs, 0) << "and holds up nobody meanwhile";

    // Its minute is over, and so is what was in the way.
    other->exec(std::string("DROP TRIGGER limited ON takt.items"));
    other->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
    EXPECT_EQ(rescue_expired_leases(*other, leads.term(), 100).returned, 1) << "its worker's other leases are gone, and it had them";
    EXPECT_EQ(other.number("SELECT count(*) FROM takt.items"), 12);
    EXPECT_EQ(other.number("SELECT count(*) FROM takt.runs WHERE status = 'failed'"), 12);
  }
}

// As an older version stored it: no tick may bear such a time.
TEST_F(DispatcherTest, C1_ASuspectsTickBearsTheTimeOfItsRescueWhateverTheItemsOwnWas) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  const Term term = lead();
  for (const char* run_at : {"-infinity", "0001-01-01 00:00:00+00", "1969-12-31 23:59:59+00"}) {
    database->exec(std::string("DELETE FROM takt.items"));
    database->exec(std::string("INSERT INTO takt.items (job_id, run_at) SELECT id, '") + run_at + "' FROM takt.jobs");
    std::optional<TickRow> tick;
    for (int crash = 1; crash <= 3 && !tick; ++crash) {
      const auto worker = run_at + std::to_string(crash);
      claim_batch(*database, {job, "due:" + worker, SystemClock().now(), "due", ++last_run, worker, 5});
      claim_batch(*database, {job, "manual:" + worker, SystemClock().now(), "manual", ++last_run, worker, 0});
      database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
      rescue_expired_leases(*database, term, 10);
      tick = wake_next_suspect(*database, term).tick;
    }
    ASSERT_TRUE(tick) << run_at;
    EXPECT_LT(std::chrono::abs(tick->due_at - SystemClock().now()), 1min) << run_at;
    database->exec(std::string("UPDATE takt.ticks SET finished_at = now() WHERE finished_at IS NULL"));
  }
}

TEST_F(DispatcherTest, Finding17_ItKeepsLeadingWhileEveryConnectionOfItsPoolWaits) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  DatabaseSettings four;
  four.pool = 4;
  Database pool(Secret(database.url()), four), vital(Secret(database.url()), one_connection());
  amqp::Publisher first(nowhere(), {}), second(nowhere(), {});
  const auto keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  const SystemClock real;
  Dispatcher dispatcher(pool, vital, first, second, keys, real, metrics, dispatching());
  dispatcher.start();
  ASSERT_TRUE(eventually([&] { return dispatcher.leading(); }));
  const auto term = database.text("SELECT term FROM takt.leader");

  // Its own statements, and others' on the same pool, wait for a lock until all four connections do.
  const auto blocker = database->dedicated();
  ASSERT_TRUE(eventually([&] {
    blocker->session().exec(std::string("BEGIN"), {});
    try {
      blocker->session().exec(std::string("LOCK TABLE takt.schedules, takt.ticks, takt.items"), {});
      return true;
    } catch (const DatabaseError&) {  // a deadlock with the dispatcher's own statements, which take them one after another, too
      blocker->session().exec(std::string("ROLLBACK"), {});
      return false;
    }
  }));
  std::atomic<bool> over{false};
  std::vector<std::thread> waiting;
  for (int i = 0; i < 4; ++i) {
    waiting.emplace_back([&] {
      while (!over) {
        try {
          pool.exec(std::string("SELECT count(*) FROM takt.items"));
        } catch (const std::exception&) {
          // it waited for too long; the next one waits
        }
      }
    });
  }
  const std::string waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
  EXPECT_TRUE(eventually([&] { return database.number(waits) >= 4; }));
  const auto until = std::chrono::steady_clock::now() + 3 * dispatching().leader_lease;
  while (std::chrono::steady_clock::now() < until && dispatcher.leading()) {
    EXPECT_EQ(database.text("SELECT until > now() FROM takt.leader"), "t");
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_TRUE(dispatcher.leading());
  over = true;
  blocker->session().exec(std::string("ROLLBACK"), {});
  for (auto& thread : waiting) thread.join();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'") > 0; }));
  EXPECT_EQ(database.text("SELECT term FROM takt.leader"), term) << "it never lost the lead";
  dispatcher.stop();
}

TEST_F(DispatcherTest, ASuspectWaitsForNobodysTickForLong) {
  database.apply(plain_job("demo") + plain_job("other") + plain_job("paused"));
  const Term term = lead();
  EXPECT_FALSE(wake_next_suspect(*database, term).any);
  database->exec(std::string("INSERT INTO takt.items (job_id, state, run_at) SELECT id, 6, now() - interval '1 s' FROM takt.jobs"));
  database->exec(std::string("UPDATE takt.jobs SET paused = true WHERE name = 'paused'"));
  const auto first = wake_next_suspect(*database, term);
  ASSERT_TRUE(first.tick);
  EXPECT_EQ(first.tick->source, "alone");
  EXPECT_FALSE(wake_next_suspect(*database, term).tick);
  // No worker consumes that job's queue: after a while the others' turn comes.
  database->exec(std::string("UPDATE takt.ticks SET publish_at = now() - interval '11 s'"));
  const auto second = wake_next_suspect(*database, term);
  ASSERT_TRUE(second.tick);
  EXPECT_NE(second.tick->job, first.tick->job);
  database->exec(std::string("UPDATE takt.ticks SET publish_at = now() - interval '11 s'"));
  const auto none = wake_next_suspect(*database, term);
  EXPECT_FALSE(none.tick) << "each job has its tick, and a paused one gets none";
  EXPECT_TRUE(none.any);
  EXPECT_FALSE(wake_next_suspect(*database, {"somebody else", 99}).tick) << "only a leader writes";
}

// Found by simulation: the redelivered tick went to the next run, and what the first one held was nobody's for ever.
TEST_F(DispatcherTest, ATickRedeliveredBetweenTheEndOfItsLeaseAndTheRescueLosesNothing) {
  database.apply(plain_job("demo"));
  const auto job = database.job("demo");
  const Term term = lead();
  database->exec(std::string("SELECT takt.enqueue('demo') FROM generate_series(1, 3)"));
  ASSERT_EQ(claim_batch(*database, {job, "due:1", SystemClock().now(), "due", 1, "lost", 10}).items.size(), 3U);
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s'"));
  EXPECT_EQ(claim_batch(*database, {job, "due:1", SystemClock().now(), "due", 2, "next", 10}).outcome, ClaimOutcome::duplicate);
  EXPECT_EQ(rescue_expired_leases(*database, term, 10).returned, 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE state = 0 AND attempt = 1"), 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.running_items"), 0);
}

TEST_F(DispatcherTest, PrunesWhatIsOldAndNothingYounger) {
  database.apply(plain_job("demo"));
  database->exec(std::string(R"(INSERT INTO takt.dead_letters (id, kind, job, reason, error, died_at, state)
    SELECT 'd' || n, 'item', 'demo', 'max_attempts', '', now() - n * interval '1 hour', CASE WHEN n % 2 = 0 THEN 'archived' ELSE 'replayed' END
      FROM generate_series(715, 725) n)"));
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at, finished_at) SELECT 't' || n, 1, 'due', now(), now() - "
                  "n * interval '1 day', "
                  "CASE WHEN n < 6 THEN now() - n * interval '1 day' END FROM generate_series(1, 6) n"));
  database->exec(
      std::string("INSERT INTO takt.item_keys VALUES (1, 'old', 1, now() - interval '1 s'), (1, 'held', 2, NULL), (1, 'window', 3, now() + "
                  "interval '1 h')"));
  const RetentionSettings settings{720h, 72h, 720h};
  const auto first = prune_once(*database, settings, 3);
  EXPECT_EQ(first.dead_letters, 3) << "a bounded batch";
  for (int i = 0; i < 5; ++i) prune_once(*database, settings, 3);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters"), 5) << "715 to 719 hours; 720 hours are 30 days";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE died_at < now() - interval '30 days'"), 0);
  EXPECT_EQ(database.text("SELECT string_agg(id, ' ' ORDER BY id) FROM takt.ticks"), "t1 t2 t6") << "an unfinished tick is never pruned";
  EXPECT_EQ(database.text("SELECT string_agg(key, ' ' ORDER BY key) FROM takt.item_keys"), "held window");
}

TEST_F(DispatcherTest, Finding40_PrunesTheAuditByAgeInBoundedBatches) {
  database->exec(
      std::string("INSERT INTO takt.audit (at, who, origin, action, subject)"
                  " SELECT now() - n * interval '1 day', 'ann', 'command line', 'dlq replay', 'day ' || n"
                  "   FROM generate_series(370, 361, -1) n"));
  const RetentionSettings settings{720h, 72h, 720h, std::chrono::days(365)};
  EXPECT_EQ(prune_once(*database, settings, 3).audit, 3) << "a bounded batch, and the oldest";
  EXPECT_TRUE(prune_once(*database, settings, 2).more(2)) << "there may be more: the next round follows at once";
  EXPECT_EQ(prune_once(*database, settings, 3).audit, 1);
  EXPECT_EQ(prune_once(*database, settings, 3).audit, 0);
  EXPECT_EQ(database.text("SELECT string_agg(subject, ', ' ORDER BY at) FROM takt.audit"), "day 364, day 363, day 362, day 361");
}

TEST_F(DispatcherTest, DropsPartitionsThatAreWhollyTooOld) {
  database->exec(
      std::string("CREATE TABLE takt.runs_20200101 PARTITION OF takt.runs FOR VALUES FROM ('2020-01-01+00') TO ('2020-01-02+00')"));
  const auto before = database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'takt.runs'::regclass");
  EXPECT_EQ(drop_old_partitions(*database, 720h).count, 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'takt.runs'::regclass"), before - 1);
}

TEST_F(DispatcherTest, MakesPartitionsThatFollowOneAnotherWhateverTheServerWritesDatesLike) {
  const auto connection = database->dedicated();
  auto& on = connection->session();
  on.script("SET datestyle = 'SQL, DMY'; SET timezone = 'America/Mexico_City'");
  on.script("SELECT takt.ensure_partitions(width => 5)");
  EXPECT_EQ(on.script("SELECT takt.ensure_partitions(width => 5)").integer(0, 0), 0) << "there already";
  EXPECT_EQ(on.script("SELECT takt.ensure_partitions(60, 5)").integer(0, 0), 3 * 12) << "57 days more, in steps of five";
  on.script("CREATE TABLE takt.runs_20200101 PARTITION OF takt.runs FOR VALUES FROM ('2020-01-01+00') TO ('2020-01-11+00')");
  EXPECT_FALSE(on.script("SELECT dropped FROM takt.drop_old_partition(now() - '2020-01-10 00:00+00'::timestamptz)").boolean(0, 0))
      << "a day is kept";
  EXPECT_TRUE(on.script("SELECT dropped FROM takt.drop_old_partition(now() - '2020-01-12 00:00+00'::timestamptz)").boolean(0, 0));
  on.script("SET datestyle = 'ISO'; SET timezone = 'UTC'");
  const auto apart = on.script(
      "SELECT count(*) FROM (SELECT since, lag(until) OVER (PARTITION BY parent ORDER BY until) AS "
      "before FROM takt.history_partitions) p WHERE before <> since");
  EXPECT_EQ(apart.integer(0, 0), 0) << "each begins where the one before ends";
}

TEST_F(DispatcherTest, KeepsHistoryInFewPartitionsHoweverLongItIs) {
  const auto connection = database->dedicated();
  auto& on = connection->session();
  const auto dropped =
      on.script("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE until > now() + interval '2 days'");
  on.script("DROP TABLE " + std::string(dropped.text(0, 0)));
  const std::string last = "SELECT extract(epoch FROM max(until))::bigint / 86400 FROM takt.history_partitions WHERE parent = 'runs'";
  const auto before = database.number(last);
  ensure_partitions(*database, std::chrono::days(365));
  EXPECT_EQ(database.number(last) - before, 53) << "a seventh of 365 days";
}

TEST_F(DispatcherTest, PublishesForgottenScheduleTicksAgainAndForgetsWakeTicks) {
  database.apply(plain_job("demo"));
  const Term term = lead();
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at, published_at) VALUES "
                  "('s', 1, 'schedule', now(), now() - interval '1 h', now() - interval '1 h'), ('d', 1, 'due', now(), now() - interval '1 "
                  "h', now() - interval '1 h'), "
                  "('fresh', 1, 'schedule', now(), now(), now())"));
  EXPECT_EQ(republish_forgotten_ticks(*database, term, 10min), 2);
  EXPECT_EQ(database.text("SELECT string_agg(id, ' ') FROM takt.ticks WHERE published_at IS NULL"), "s");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE id = 'd'"), 0);
}

}  // namespace
}  // namespace takt
