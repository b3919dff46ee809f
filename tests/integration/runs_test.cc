// One run from claim to settling, by the executor on a real PostgreSQL: what handlers, callers and slow transactions do to it.
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "dispatcher/leadership.h"
#include "dispatcher/lease_rescue.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "worker/run_executor.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

/// What a test wants done with the items.
class ToldHandler final : public Handler {
 public:
  std::function<void(const std::vector<ClaimedItem>&, std::vector<HandlerResult>&)> behave;
  JobCircuit destination;
  std::mutex mutex;
  std::map<std::int64_t, int> calls;  // guarded by mutex

  void run(const RunContext& /*context*/, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) override {
    {
      const std::scoped_lock lock(mutex);
      for (const auto& item : items) ++calls[item.id];
    }
    for (auto& result : results) result.item_class = ItemClass::done;
    if (behave) behave(items, results);
  }
  JobCircuit circuit(const JobDefinition& /*job*/) override { return destination; }
  int most_calls() {
    int most = 0;
    for (const auto& [item, count] : calls) most = std::max(most, count);
    return most;
  }
};

struct RunsTest : testing::Test {
  TestDatabase database;
  Database vital{Secret(database.url()), one_connection()};
  SystemClock clock;
  SeededRandom random{1};
  Metrics metrics;
  ToldHandler handler;
  Heartbeat heartbeat{vital};
  RunExecutor executor{*database, {handler, handler, handler}, heartbeat, clock, random, metrics, "w"};

  void enqueue(int count, const std::string& more = "") {
    database->exec("SELECT takt.enqueue('demo', jsonb_build_object('n', n)" + more + ") FROM generate_series(1, " + std::to_string(count) +
                   ") n");
  }
  std::shared_ptr<const CatalogJob> job() { return std::make_shared<const CatalogJob>(database.job("demo")); }
  static v1::JobTick tick(const std::string& id) {
    v1::JobTick tick;
    tick.set_id(id);
    tick.set_job("demo");
    return tick;
  }
  /// One tick and what follows it in this thread; how many runs.
  int run(const std::shared_ptr<const CatalogJob>& job, const std::string& id) {
    int runs = 0;
    auto held = executor.begin(job, tick(id), [] { return false; });
    for (; held; ++runs) {
      auto outcome = executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [&] { return job; });
      held = std::move(outcome.next);
    }
    return runs;
  }
  std::string states() {
    return database.text(
        "SELECT coalesce(string_agg(state || ' ' || count, ', ' ORDER BY state), '')"
        " FROM (SELECT state, count(*) FROM takt.all_items GROUP BY 1) s");
  }
};

/// Beats, and a leader that rescues, as the services do while a test runs.
class Services {
 public:
  Services(RunsTest& test) : leadership_(test.vital, 60s, test.clock) {
    leadership_.try_lead();
    thread_ = std::thread([this, &test] {
      while (!ended_) {
        try {
          test.heartbeat.beat(std::chrono::steady_clock::now());
          rescued_ += rescue_expired_leases(test.vital, leadership_.term(), 10).runs;
        } catch (const DatabaseUnavailable&) {
          // on a busy machine; the next round asks again
        }
        std::this_thread::sleep_for(100ms);
      }
    });
  }
  ~Services() { end(); }
  int end() {
    ended_ = true;
    if (thread_.joinable()) thread_.join();
    return rescued_;
  }

 private:
  Leadership leadership_;
  std::atomic<bool> ended_{false};
  int rescued_ = 0;
  std::thread thread_;
};

TEST_F(RunsTest, C10_Finding7_WhatOthersLostLeavesAnItemItsOwnAttempts) {
  database.apply(plain_job("demo", "batch_size: 2, max_attempts: 2, backoff: [1s]"));
  Leadership leadership(vital, 60s, clock);
  ASSERT_TRUE(leadership.try_lead());
  enqueue(2);
  // Its worker vanishes while it holds both.
  ASSERT_EQ(claim_batch(*database, {*job(), "due:lost", clock.now(), "due", 1, "gone", 2}).items.size(), 2U);
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s'"));
  ASSERT_EQ(rescue_expired_leases(vital, leadership.term(), 10).returned, 2);

  handler.behave = [](const auto&, auto& results) {
    results[0].item_class = ItemClass::error;
    results[0].reason = "http_500";
  };
  run(job(), "due:1");  // attempt 2 of both, the first failure that is an item's own
  EXPECT_EQ(states(), "done 1, pending 1");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE run_at > now()"), 1) << "after its pause";
  database->exec(std::string("UPDATE takt.items SET run_at = now()"));
  run(job(), "due:2");
  EXPECT_EQ(states(), "dead 1, done 1");
  EXPECT_EQ(database.text("SELECT body->>'reason' || ' ' || (body->>'attempts') FROM takt.dead_letter_outbox"), "max_attempts 3");
}

TEST_F(RunsTest, C7_Finding9_AHandlerThatThrowsIsItsItemsErrorAndHoldsNothing) {
  database.apply(plain_job("demo", "lease: 2s, backoff: [1h]"));
  enqueue(3);
  for (const int what : {0, 1, 2}) {
    handler.behave = [what](const auto&, auto& results) {
      results[1].item_class = results[2].item_class = ItemClass::handed_back;  // the first one was done
      if (what == 0) throw std::runtime_error("no \xff luck");
      if (what == 1) throw std::bad_alloc();
      throw 7;
    };
    run(job(), "due:" + std::to_string(what));
    EXPECT_EQ(database.number("SELECT count(*) FROM takt.running_items"), 0);
    EXPECT_EQ(heartbeat.beat(std::chrono::steady_clock::now() + 1s), 0) << "no lease is kept alive";
    database->exec(std::string("UPDATE takt.items SET run_at = now()"));
    enqueue(1);
  }
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts WHERE reason = 'handler_exception'"), 6);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts WHERE error LIKE '%no ? luck%'"), 2);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items WHERE state = 2"), 3) << "what was done is not done again";
}

TEST_F(RunsTest, C7_Finding29_WhateverAHandlerAnswersIsWrittenDown) {
  database.apply(plain_job("demo", "max_attempts: 1"));
  enqueue(4);
  handler.behave = [](const auto&, auto& results) {
    for (auto& result : results) result.item_class = ItemClass::error;
    results[0].reason = std::string("\xff\xfe\0 why", 7);
    results[0].error = std::string(5000, '\0');
    results[1].seconds = std::numeric_limits<double>::quiet_NaN();
    results[1].retry_after = Duration::min();
    results[1].processed = std::numeric_limits<std::int64_t>::max();
    results[1].failed = -1;
    results[1].queue_depth = std::numeric_limits<std::int64_t>::min();
    results[2].seconds = std::numeric_limits<double>::infinity();
    results[2].processed = std::numeric_limits<std::int64_t>::max();
    results[2].retry_after = Duration::max();
    results[2].error = "\xf0\x9f\x98";  // half of a character
    results[3].item_class = static_cast<ItemClass>(77);
  };
  run(job(), "due:1");
  EXPECT_EQ(states(), "dead 4");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letter_outbox"), 4);
  EXPECT_EQ(database.text("SELECT reason FROM takt.failed_attempts WHERE item_id = 1"), "??? why");
  EXPECT_LE(database.number("SELECT max(octet_length(error)) FROM takt.failed_attempts"), 1030);
}

TEST_F(RunsTest, C8_Finding5_ADryRunStoresNothingAndSaysWhatWouldBeDone) {
  database.apply(plain_job("demo", "item_per_tick: true"));
  auto carrying = tick("external-1");
  carrying.set_dry_run(true);
  for (int i = 0; i < 3; ++i) carrying.add_items();
  enqueue(2);
  auto held = executor.begin(job(), carrying, [] { return false; });
  ASSERT_TRUE(held);
  executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [] { return nullptr; });
  auto plain = tick("manual:demo:1");
  plain.set_dry_run(true);
  held = executor.begin(job(), plain, [] { return false; });
  ASSERT_TRUE(held);
  executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [] { return nullptr; });
  EXPECT_EQ(states(), "pending 2");
  EXPECT_EQ(database.text("SELECT string_agg(scanned || ' ' || dry_run, ', ' ORDER BY id) FROM takt.runs"), "5 true, 3 true")
      << "what is due, and what the tick carries or would bring";
  EXPECT_TRUE(handler.calls.empty());
}

// The lock stands for anything slow: an application's, an operator's, a report's.
TEST_F(RunsTest, C4_Finding2_SettlingWaitsForALockUnderALivingLeaseAndNothingIsHandledTwice) {
  database.apply(plain_job("demo", "lease: 2s, batch_size: 100, dedupe_window: 1h") + plain_job("other"));
  enqueue(100, ", key => 'k' || n");
  const auto locked = connect_database(Secret(database.url()), {});
  Services services(*this);
  std::atomic<bool> blocked{false};
  handler.behave = [&](const auto&, auto&) { blocked = true; };
  std::thread slow([&] {
    locked->transaction([&](Session& on) {
      on.script("SELECT 1 FROM takt.item_keys WHERE key IN ('k7', 'k70') FOR UPDATE");
      while (!blocked) std::this_thread::sleep_for(5ms);
      std::this_thread::sleep_for(5s);  // two and a half leases
    });
  });
  EXPECT_TRUE(eventually([&] {
    return database.number(
               "SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock' AND relation = "
               "'takt.item_keys'::regclass") > 0;
  }));
  run(job(), "due:1");
  slow.join();
  EXPECT_EQ(services.end(), 0) << "nothing was rescued";
  EXPECT_EQ(handler.most_calls(), 1);
  EXPECT_EQ(states(), "done 100");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts"), 0);
}

// A key of a slot can be guessed, and one of an application's may be that of a tick's item.
TEST_F(RunsTest, C4_Finding2_ATickWhoseKeyAnOpenTransactionHoldsKeepsNoPlaceAndComesAgain) {
  database.apply(plain_job("demo", "dedupe_window: 1h") + plain_job("other"));
  Leadership leadership(vital, 60s, clock);
  ASSERT_TRUE(leadership.try_lead());
  auto carrying = tick("external-1");
  set_timestamp(*carrying.mutable_due_at(), clock.now());
  for (const char* key : {"free", "taken"}) carrying.add_items()->set_key(key);
  const auto begun = [&] { return executor.begin(job(), carrying, [] { return false; }); };
  const auto application = connect_database(Secret(database.url()), {});
  application->transaction([&](Session& on) {
    on.script("SELECT takt.enqueue('demo', '{}', 'taken')");
    const auto began = std::chrono::steady_clock::now();
    for (int i = 0; i < 3; ++i) EXPECT_FALSE(begun());
    EXPECT_LT(seconds_between(began, std::chrono::steady_clock::now()), 4) << "the lock's own timeout is 5 s, each time";
    EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 0) << "all of them, or none";
    EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND put_off_until > now()"), 1);
    EXPECT_EQ(republish_forgotten_ticks(vital, leadership.term(), 1h), 0) << "not at once";
    on.script("ROLLBACK; BEGIN");
  });
  database->exec(std::string("UPDATE takt.ticks SET put_off_until = now() - interval '1 s'"));
  EXPECT_EQ(republish_forgotten_ticks(vital, leadership.term(), 1h), 1);
  EXPECT_EQ(database.text("SELECT concat(published_at IS NULL, ' ', jsonb_array_length(items), ' ', items->1->>'key') FROM takt.ticks"),
            "t 2 taken")
      << "what the outbox sends is what came";
  auto held = begun();
  ASSERT_TRUE(held);
  executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [] { return nullptr; });
  EXPECT_EQ(states(), "done 2");
  EXPECT_FALSE(begun()) << "once";
  EXPECT_EQ(states(), "done 2");
}

// Where nobody leads, what is put off stays so.
TEST_F(RunsTest, C4_Finding2_ATickWithoutKeysIsNotPutOffForALockThatPasses) {
  database.apply(plain_job("demo"));
  auto carrying = tick("external-1");
  set_timestamp(*carrying.mutable_due_at(), clock.now());
  carrying.add_items()->set_payload_json("{}");
  const auto migration = connect_database(Secret(database.url()), {});
  std::atomic<bool> locked{false};
  std::jthread passing([&] {
    migration->transaction([&](Session& on) {
      on.script("LOCK takt.items IN SHARE MODE");
      locked = true;
      on.script("SELECT pg_sleep(0.5)");  // twice as long as two tries to store items wait
    });
  });
  while (!locked) std::this_thread::sleep_for(5ms);
  auto held = executor.begin(job(), carrying, [] { return false; });
  passing.join();
  ASSERT_TRUE(held);
  executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [] { return nullptr; });
  EXPECT_EQ(states(), "done 1");
}

// Of more items than the circuit wants failures all have failed when it opens.
TEST_F(RunsTest, F6_NoItemDiesOfTheRunInWhichItsDestinationCameToBeLeftAlone) {
  database.apply(plain_job("demo", "max_attempts: 2, batch_size: 25, backoff: [1ms]"));
  CircuitBreaker breaker(clock);
  handler.destination = {&breaker, "somewhere", {}};
  handler.behave = [&](const auto&, auto& results) {
    for (auto& result : results) {
      if (const auto pass = breaker.begin("somewhere", {})) breaker.end("somewhere", {}, *pass, false, "it answered 500");
      result.item_class = ItemClass::error;
    }
  };
  const auto once = [&](const std::string& id) {
    auto held = executor.begin(job(), tick(id), [] { return false; });
    executor.finish(std::move(*held), {[] { return false; }, [] { return false; }}, [] { return nullptr; });
    std::this_thread::sleep_for(5ms);
  };
  enqueue(15);
  once("due:1");
  EXPECT_EQ(states(), "pending 15");
  once("due:2");
  EXPECT_EQ(states(), "pending 15") << "the twentieth failure was among their second attempts";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failing_destinations WHERE opened_at IS NOT NULL"), 1);
  database->exec(std::string("UPDATE takt.failing_destinations SET opened_at = opened_at - interval '2 s'"));
  once("due:3");
  EXPECT_EQ(states(), "dead 15") << "what fails later counts";
}

// Whoever takes every lock that PostgreSQL has room for makes all others' statements fail so.
TEST_F(RunsTest, C15_Finding2_SettlingWaitsWhileTheServerIsShortOfResources) {
  database.apply(plain_job("demo", "lease: 2s"));
  enqueue(3);
  database->exec(std::string("CREATE TABLE public.short AS SELECT 1"));
  database->exec(std::string(
      "CREATE FUNCTION public.short() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
      " IF EXISTS (SELECT FROM public.short) THEN RAISE 'out of shared memory' USING ERRCODE = '53200'; END IF; RETURN NEW; END $$"));
  database->exec(std::string("CREATE TRIGGER short BEFORE UPDATE ON takt.runs FOR EACH ROW EXECUTE FUNCTION public.short()"));
  Services services(*this);
  std::thread relief([&] {
    std::this_thread::sleep_for(3s);  // a lease and a half
    database->exec(std::string("DELETE FROM public.short"));
  });
  run(job(), "due:1");
  relief.join();
  EXPECT_EQ(services.end(), 0) << "nothing was rescued";
  EXPECT_EQ(handler.most_calls(), 1);
  EXPECT_EQ(states(), "done 3");
}

TEST_F(RunsTest, C4_Finding2_ALockThatOneRunWaitsForIsNotTheOthersInItsChain) {
  database.apply(plain_job("demo", "lease: 2s, batch_size: 2, dedupe_window: 1h"));
  enqueue(60, ", key => 'k' || n");
  const auto locked = connect_database(Secret(database.url()), {});
  Services services(*this);
  std::atomic<bool> free{false};
  std::thread slow([&] {
    locked->transaction([&](Session& on) {
      on.script("SELECT 1 FROM takt.item_keys WHERE key = 'k30' FOR UPDATE");
      while (!free) std::this_thread::sleep_for(5ms);
    });
  });
  EXPECT_TRUE(eventually([&] {
    return database.number(
               "SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock' AND relation = "
               "'takt.item_keys'::regclass") > 0;
  }));
  std::vector<std::thread> runs;
  const auto definition = job();
  for (int i = 0; i < 4; ++i) runs.emplace_back([&, i] { run(definition, "due:" + std::to_string(i)); });
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.finished_items") == 58; })) << "all but one run's two";
  free = true;
  for (auto& thread : runs) thread.join();
  slow.join();
  EXPECT_EQ(services.end(), 0);
  EXPECT_EQ(handler.most_calls(), 1);
  EXPECT_EQ(states(), "done 60");
}

TEST_F(RunsTest, Finding17_LeasesAreKeptWhileEveryConnectionOfThePoolWaits) {
  database.apply(plain_job("demo", "lease: 2s"));
  enqueue(1);
  Services services(*this);
  std::vector<std::thread> waiting;
  const auto locked = connect_database(Secret(database.url()), {});
  locked->session().script("SELECT pg_advisory_lock(1)");
  handler.behave = [&](const auto&, auto&) {
    for (int i = 0; i < 8; ++i) {
      waiting.emplace_back([&] {
        try {
          database->exec(std::string("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)"));
        } catch (const std::exception&) {
          // its lock timeout, or that of the pool
        }
      });
    }
    std::this_thread::sleep_for(3s);
  };
  run(job(), "due:1");
  for (auto& thread : waiting) thread.join();
  EXPECT_EQ(services.end(), 0);
  EXPECT_EQ(handler.most_calls(), 1);
  EXPECT_EQ(states(), "done 1");
}

TEST_F(RunsTest, AHeartbeatLeavesAloneWhatIsBeingSettledAndRevivesWhatNobodyTook) {
  database.apply(plain_job("demo", "lease: 2s") + plain_job("solo", "lease: 2s, concurrency: 1"));
  const auto claim = [&](const std::string& name, const std::string& id, std::int64_t run) {
    const auto job = database.job(name);
    claim_batch(*database, {job, id, clock.now(), "due", run, "w", 10});
    const auto control = std::make_shared<RunControl>();
    heartbeat.add(run, id, 2s, control);
    return control;
  };
  const auto first = claim("demo", "due:1", 1);
  const auto now = std::chrono::steady_clock::now();
  const auto settling = connect_database(Secret(database.url()), {});
  settling->transaction([&](Session& on) {
    on.script("SELECT 1 FROM takt.ticks WHERE id = 'due:1' FOR UPDATE");
    EXPECT_EQ(heartbeat.beat(now + 1s), 0) << "it does not wait";
    EXPECT_FALSE(first->lost());
    EXPECT_EQ(heartbeat.beat(now + 2s), 0);
    EXPECT_FALSE(first->lost()) << "still its own, as far as anybody can tell";
  });
  EXPECT_EQ(heartbeat.beat(now + 3s), 1);
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s'"));
  heartbeat.renew(1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE lease_until > now()"), 1) << "over, but nobody has taken it";
  const auto solo = claim("solo", "due:2", 2);
  database->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE id = 'due:2'"));
  heartbeat.renew(2);
  EXPECT_TRUE(solo->lost()) << "another run may have begun meanwhile";
}

TEST(LeadershipContact, Finding28_StartsAnewWithATermAndAfterAGap) {
  TestDatabase database;
  FakeClock clock;
  Leadership leadership(*database, 3s, clock);
  EXPECT_EQ(leadership.contact(), 0ms);
  ASSERT_TRUE(leadership.try_lead());
  for (int i = 0; i < 4; ++i) {
    clock.advance(1s);
    ASSERT_TRUE(leadership.try_lead());
  }
  EXPECT_EQ(leadership.contact(), 4s);
  clock.advance(2900ms);
  EXPECT_EQ(leadership.contact(), 6900ms);
  clock.advance(200ms);
  EXPECT_EQ(leadership.contact(), 0ms) << "the lease is over on this clock";
  ASSERT_TRUE(leadership.try_lead());
  EXPECT_EQ(leadership.contact(), 0ms) << "PostgreSQL was out of reach for longer than a lease";
  clock.advance(1s);
  EXPECT_EQ(leadership.contact(), 1s);
}

}  // namespace
}  // namespace takt
