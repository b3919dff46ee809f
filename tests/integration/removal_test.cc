#include "core/config/removal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "core/config/apply.h"
#include "dispatcher/leadership.h"
#include "dispatcher/lease_rescue.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/runs.h"

namespace takt {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

struct RemovalTest : testing::Test {
  TestDatabase database;

  void SetUp() override { database.apply(plain_job("old") + plain_job("kept")); }

  std::vector<DefinitionChange> apply(const std::string& jobs, Removal removal, bool dry_run = false) {
    return apply_definitions(*database, parse_config("jobs:\n" + jobs, "test.yaml"), "ann", dry_run, removal);
  }
  /// Everything but `old`, which is removed.
  std::vector<DefinitionChange> remove_old(Removal removal, bool dry_run = false) { return apply(plain_job("kept"), removal, dry_run); }
  bool removed() { return database.number("SELECT count(*) FROM takt.jobs WHERE name = 'old' AND removed_at IS NOT NULL") == 1; }
  std::string count_by_state() {
    return database.text(
        "SELECT coalesce(string_agg(state || ' ' || n, ', ' ORDER BY state), '') FROM"
        " (SELECT state, count(*) AS n FROM takt.all_items GROUP BY state) s");
  }
  /// A run that holds `items` of the job, begun for a tick from outside.
  Claim begin(const CatalogJob& job, const std::string& tick, std::int64_t run, int items) {
    return claim_batch(*database, {job, tick, SystemClock().now(), tick_source(tick), run, "test-worker", items});
  }
};

TEST_F(RemovalTest, C17_Finding38_RefusesToRemoveAJobThatHasItemsAndSaysHowMany) {
  database->exec(std::string("SELECT takt.enqueue('old', run_at => now() + n * interval '1 h') FROM generate_series(0, 4) n"));
  ASSERT_EQ(begin(database.job("old"), "external-1", 1, 1).items.size(), 1U);
  database->exec(
      std::string("UPDATE takt.items SET state = CASE WHEN run_at < now() + interval '90 min' THEN 5 ELSE 6 END"
                  " WHERE run_at < now() + interval '150 min'"));
  const auto audited = database.number("SELECT count(*) FROM takt.audit");
  const auto changes = apply(plain_job("kept", "batch_size: 7"), Removal::refuse);
  EXPECT_EQ(removed_jobs(changes), std::vector<std::string>{"old"});
  ASSERT_EQ(changes.size(), 2U);
  EXPECT_EQ(changes[1].subject, "job old");
  EXPECT_EQ(changes[1].detail, "4 items waiting (1 blocked), 1 running, 1 tick under way; items stay until the job is back");
  EXPECT_FALSE(removed());
  EXPECT_EQ(database.number("SELECT batch_size FROM takt.jobs WHERE name = 'kept'"), 100) << "nothing else was applied";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.audit"), audited);
  EXPECT_EQ(count_by_state(), "blocked 1, pending 3, running 1");

  EXPECT_EQ(remove_old(Removal::cancel, true).size(), 1U) << "a dry run shows it, too";
  EXPECT_FALSE(removed());
  EXPECT_EQ(count_by_state(), "blocked 1, pending 3, running 1");
  EXPECT_TRUE(removed_with_items(*database).empty());
}

TEST_F(RemovalTest, F9_RemovesAJobOnlyWhenAsked) {
  EXPECT_EQ(removed_jobs(remove_old(Removal::refuse)), std::vector<std::string>{"old"});
  EXPECT_FALSE(removed()) << "though it has no items";
  const auto changes = remove_old(Removal::prune);
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].detail, "");
  EXPECT_TRUE(removed());
}

TEST_F(RemovalTest, C17_Finding38_LeftItemsAreShownNeitherRunNorContinuedAndComeBackWithTheirJob) {
  database->exec(std::string("SELECT takt.enqueue('old', key => 'k' || n) FROM generate_series(1, 5) n"));
  const auto job = database.job("old");
  const auto claim = begin(job, "external-1", 1, 2);
  ASSERT_EQ(claim.items.size(), 2U);
  EXPECT_EQ(remove_old(Removal::prune)[0].detail, "3 items waiting, 2 running, 1 tick under way; items stay until the job is back");

  const auto left = removed_with_items(*database);
  ASSERT_EQ(left.size(), 1U);
  EXPECT_EQ(left[0].job, "old");
  EXPECT_EQ(left[0].text(), "3 items waiting, 2 running, 1 tick under way");
  EXPECT_TRUE(begin(job, "due:2", 2, 10).items.empty()) << "a worker that has not heard of it yet takes none";
  Claim next;
  const auto run = ended("external-1", 1, job, claim);
  const auto settled = settle_and_claim(*database, run, {job, next_tick_id(run), SystemClock().now(), "more", 3, "test-worker", 10}, next);
  EXPECT_TRUE(settled.recorded) << "what was running ends";
  EXPECT_FALSE(settled.continues);
  EXPECT_TRUE(next.items.empty());
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND id <> 'due:2'"), 0) << "no continuation";

  apply(plain_job("kept") + plain_job("old"), Removal::refuse);
  EXPECT_TRUE(removed_with_items(*database).empty());
  EXPECT_EQ(begin(job, "due:4", 4, 10).items.size(), 3U);
}

TEST_F(RemovalTest, C17_Finding38_CancelsWhatWaitsInBatchesAndReleasesItsKeys) {
  database->exec(
      std::string("SELECT count(*) FROM generate_series(0, 1) b, LATERAL takt.enqueue_many('old', array_fill('{\"a\": 1}'::jsonb, "
                  "ARRAY[6000]), keys => ARRAY(SELECT b || '-' || n FROM generate_series(1, 6000) n))"));
  database->exec(std::string("UPDATE takt.items SET state = CASE WHEN id % 2 = 0 THEN 5 ELSE 6 END WHERE id <= 10"));
  ASSERT_EQ(begin(database.job("old"), "external-1", 1, 2).items.size(), 2U);
  EXPECT_EQ(remove_old(Removal::cancel)[0].detail, "11998 items waiting (5 blocked), 2 running, 1 tick under way; 11998 cancelled");
  EXPECT_EQ(count_by_state(), "cancelled 11998, running 2");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.item_keys"), 2) << "the running ones'";
  EXPECT_EQ(
      database.number("SELECT count(*) FROM takt.ended_items WHERE class = 'cancelled' AND payload = '{\"a\": 1}' AND key IS NOT NULL"),
      11998);
  EXPECT_THAT(database.text("SELECT detail #>> '{}' FROM takt.audit WHERE who = 'ann' AND action = 'remove' AND subject = 'job old'"),
              HasSubstr("what waits is to be cancelled"));
  EXPECT_EQ(database.text("SELECT count(*) || ' ' || sum((detail->>'items')::int) FROM takt.audit WHERE who = 'ann' AND action = 'cancel'"),
            "5 11998")
      << "a line a batch: 5,000, 5,000 and 1,988 pending, 5 blocked, 5 suspect";
  apply(plain_job("kept") + plain_job("old"), Removal::refuse);
  EXPECT_GT(database.number("SELECT takt.enqueue('old', key => '1-6000')"), 12000) << "a new item: its key was free";
}

/// 25 keyed items of `old`, and somebody who holds the key of the 15th.
struct BlockedRemovalTest : RemovalTest {
  std::unique_ptr<DatabaseConnection> somebody = database->dedicated();

  void SetUp() override {
    RemovalTest::SetUp();
    database->exec(std::string("SELECT takt.enqueue('old', key => 'k' || n) FROM generate_series(1, 25) n"));
    somebody->session().script("BEGIN; SELECT FROM takt.item_keys WHERE key = 'k15' FOR UPDATE");
  }
  /// A whole batch of apply's that is due before these.
  void store_more() {
    database->exec(
        std::string("SELECT count(*) FROM takt.enqueue_many('old', array_fill('{}'::jsonb, ARRAY[5000]),"
                    " run_ats => array_fill('2000-01-01'::timestamptz, ARRAY[5000]))"));
  }
  Cancelled cancel(std::optional<std::int64_t> removal = std::nullopt) {
    DatabaseSettings settings = one_connection();
    settings.lock_timeout = 500ms;
    Database impatient(Secret(database.url()), settings);
    return cancel_waiting(impatient, *backlog_of(*database, "old"), {"ann", "command line"}, removal, 10);
  }
  std::int64_t cancelled() { return database.number("SELECT count(*) FROM takt.ended_items WHERE class = 'cancelled'"); }
  std::int64_t audited() {
    return database.number("SELECT coalesce(sum((detail->>'items')::int), 0) FROM takt.audit WHERE action = 'cancel' AND who = 'ann'");
  }
};

TEST_F(BlockedRemovalTest, C17_Finding38_WhatWasCancelledStaysSoWhereALaterBatchFails) {
  const auto stopped = cancel();
  EXPECT_EQ(stopped.items, 10);
  EXPECT_THAT(stopped.stopped_by, HasSubstr("lock timeout"));
  EXPECT_EQ(cancelled(), 10);
  EXPECT_EQ(audited(), 10);
  somebody->session().script("ROLLBACK");
  const auto rest = cancel();
  EXPECT_EQ(rest.items, 15);
  EXPECT_EQ(rest.stopped_by, "");
  EXPECT_EQ(cancelled(), 25);
  EXPECT_EQ(audited(), 25);
}

TEST_F(BlockedRemovalTest, C17_Finding38_StopsWhereTheJobIsAppliedAgainMeanwhile) {
  const auto removal = remove_old(Removal::prune)[0].removal;
  std::thread applying([&] {
    EXPECT_TRUE(eventually([&] { return cancelled() == 10; }));
    apply(plain_job("kept") + plain_job("old"), Removal::refuse);
  });
  const auto stopped = cancel(removal);
  applying.join();
  EXPECT_EQ(stopped.items, 10);
  EXPECT_THAT(stopped.stopped_by, HasSubstr("applied again"));
  EXPECT_EQ(cancelled(), 10);
  EXPECT_FALSE(removed());
}

TEST_F(BlockedRemovalTest, C17_Finding38_LeavesTheItemsToALaterRemovalThatLeavesThem) {
  DatabaseSettings settings;
  settings.lock_timeout = 1s;
  Database removing(Secret(database.url()), settings);
  store_more();
  auto removal = std::async(std::launch::async, [&] {
    return apply_definitions(removing, parse_config("jobs:\n" + plain_job("kept"), "test.yaml"), "ann", false, Removal::cancel);
  });
  EXPECT_TRUE(eventually([&] { return cancelled() == 5000; }));
  // Waits for the batch that waits for the key.
  apply(plain_job("kept") + plain_job("old"), Removal::refuse);
  remove_old(Removal::prune);
  somebody->session().script("ROLLBACK");
  const auto change = removal.get()[0];
  EXPECT_TRUE(change.is_back);
  EXPECT_EQ(change.detail, "5025 items waiting; 5000 cancelled");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 25);
  EXPECT_EQ(database.text("SELECT string_agg(origin, ',') FROM takt.audit WHERE action = 'cancel'"), "file");
}

TEST_F(RemovalTest, C17_Finding38_TwoCancelsAtOnceShareTheItems) {
  database->exec(std::string("SELECT takt.enqueue('old', key => 'k' || n) FROM generate_series(1, 500) n"));
  const auto backlog = *backlog_of(*database, "old");
  auto first = std::async(std::launch::async, [&] {
    return cancel_waiting(*database, backlog, {"ann", "command line"}, std::nullopt, 10);
  });
  const auto second = cancel_waiting(*database, backlog, {"ann", "command line"}, std::nullopt, 10);
  const auto other = first.get();
  EXPECT_EQ(other.stopped_by + second.stopped_by, "");
  EXPECT_EQ(other.items + second.items, 500);
  EXPECT_EQ(count_by_state(), "cancelled 500");
}

TEST_F(RemovalTest, C17_Finding38_WhatIsEnqueuedWhileItCancelsIsLeft) {
  database->exec(std::string("SELECT takt.enqueue('old') FROM generate_series(1, 25)"));
  std::atomic<bool> over = false;
  std::thread enqueuing([&] {
    Database other(Secret(database.url()), one_connection());
    while (!over) other.exec(std::string("SELECT takt.enqueue('old') FROM generate_series(1, 50)"));
  });
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.items") > 500; }));
  const auto ended = cancel_waiting(*database, *backlog_of(*database, "old"), {"ann", "command line"}, std::nullopt, 10);
  over = true;
  enqueuing.join();
  EXPECT_GT(ended.items, 500);
  EXPECT_EQ(ended.stopped_by, "");
  EXPECT_GT(database.number("SELECT count(*) FROM takt.items"), 0);
}

TEST_F(RemovalTest, Finding20_FinishesTheTicksNobodyHasBegunAndKeepsWhatTheyCarry) {
  database->exec(std::string(R"sql(
    INSERT INTO takt.ticks (id, job_id, source, due_at, published_at, items, dry_run)
    SELECT t.id, j.id, t.source, now(), t.published_at, t.items::jsonb, t.dry
      FROM takt.jobs j, (VALUES
        ('old/s@2030-01-01T00:00:00Z', 'schedule', now(), '[{"payload": {"n": 1234567890123456789}, "key": "slot"}]', NULL),
        ('replay:x', 'replay', NULL, '[{"payload": 1.50, "priority": -3, "runAt": "2030-01-01T00:00:00Z"}, {}]', NULL),
        ('replay:dry', 'replay', NULL, '[{"payload": 2}]', true),
        ('due:1', 'due', now(), NULL, NULL)) t(id, source, published_at, items, dry)
     WHERE j.name = 'old')sql"));
  EXPECT_EQ(remove_old(Removal::refuse)[0].backlog->waiting, 3) << "what a tick carries is work";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 4);
  EXPECT_EQ(remove_old(Removal::prune)[0].detail, "3 items waiting, 4 ticks under way; items stay until the job is back");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL OR items IS NOT NULL"), 0);
  EXPECT_EQ(database.text("SELECT string_agg(concat_ws(' ', payload, key, priority, CASE WHEN run_at > now() THEN 'later' END), ', ' "
                          "ORDER BY key, priority) FROM takt.items"),
            "{\"n\": 1234567890123456789} slot 0, 1.50 -3 later, {} 0");
}

TEST_F(RemovalTest, Finding20_TheTickOfALostWorkerIsNotPublishedAgainWhereItsJobWasRemoved) {
  database->exec(std::string("SELECT takt.enqueue('old')"));
  ASSERT_EQ(begin(database.job("old"), "external-1", 1, 1).items.size(), 1U);
  remove_old(Removal::prune);
  FakeClock clock;
  Leadership leadership(*database, 60s, clock);
  ASSERT_TRUE(leadership.try_lead());
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s'"));
  EXPECT_EQ(rescue_expired_leases(*database, leadership.term(), 10).returned, 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 0);
  EXPECT_EQ(removed_with_items(*database)[0].text(), "1 item waiting");
}

}  // namespace
}  // namespace takt
