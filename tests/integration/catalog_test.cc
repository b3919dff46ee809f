#include <gtest/gtest.h>

#include <thread>

#include "core/amqp/topology.h"
#include "core/tick/tick_message.h"
#include "dispatcher/lease_rescue.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "worker/intake.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr auto kLike =
    "INSERT INTO takt.jobs (name, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source) "
    "SELECT $1, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source FROM takt.jobs "
    "WHERE name = 'demo'";

struct CatalogTest : testing::Test {
  TestDatabase database;
  FakeClock own;
  DatabaseClock clock{own};
  JobCatalog catalog{*database, clock};

  void SetUp() override {
    database.apply(plain_job("demo"));
    catalog.refresh();
  }
  bool finds(const std::string& name) { return std::holds_alternative<std::shared_ptr<const CatalogJob>>(catalog.look_up(name)); }
  NoJob why_not(const std::string& name) { return std::get<NoJob>(catalog.look_up(name)); }
};

TEST_F(CatalogTest, Finding19_WhoeverFindsAQueryUnderWayWaitsForItsResult) {
  std::atomic<int> found{0}, answered{0};
  std::vector<std::thread> crowd;
  database->transaction([&](Session& on) {
    on.script("LOCK TABLE takt.jobs IN ACCESS EXCLUSIVE MODE");
    for (int i = 0; i < 8; ++i) {
      crowd.emplace_back([&, name = i % 2 == 0 ? "first" : "second"] {
        if (finds(name)) ++found;
        ++answered;
      });
    }
    EXPECT_TRUE(eventually([&] {
      return database.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'") == 1;
    })) << "one query for all of them";
    EXPECT_EQ(answered, 0) << "nobody takes a query that is not answered for an answer";
    for (const auto* name : {"first", "second"}) on.exec(std::string(kLike), Params::of(std::string(name)));
  });
  for (auto& one : crowd) one.join();
  EXPECT_EQ(found, 8);
}

TEST_F(CatalogTest, D4_WhoMeetsATimeFromTheFutureHearsPostgresqlsAlsoRightAfterTheLastQuery) {
  std::this_thread::sleep_for(300ms);  // this process slept: its own clock stands still
  const auto before = clock.now();
  std::atomic<int> heard{0};
  std::vector<std::thread> crowd;
  database->transaction([&](Session& on) {
    on.script("LOCK TABLE takt.jobs IN ACCESS EXCLUSIVE MODE");
    for (int i = 0; i < 4; ++i) {
      crowd.emplace_back([&] {
        catalog.refresh_rarely();
        if (clock.now() - before >= 300ms) ++heard;
      });
    }
    EXPECT_TRUE(eventually([&] {
      return database.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'") == 1;
    })) << "one query for all of them";
    EXPECT_EQ(heard, 0);
  });
  for (auto& one : crowd) one.join();
  EXPECT_EQ(heard, 4) << "and who came meanwhile has waited for it";
}

TEST_F(CatalogTest, Finding19_JobsAppliedTogetherAreBothFoundAtOnce) {
  EXPECT_EQ(why_not("first"), NoJob::unknown) << "the catalog has just been asked";
  database.apply(plain_job("demo") + plain_job("first") + plain_job("second"));
  EXPECT_TRUE(finds("second"));
  EXPECT_TRUE(finds("first"));
}

TEST_F(CatalogTest, Finding19_AnOlderDefinitionNeverReplacesANewer) {
  std::atomic<bool> over{false};
  std::atomic<int> backwards{0};
  std::vector<std::thread> crowd;
  for (int i = 0; i < 6; ++i) {
    crowd.emplace_back([&] {
      for (int last = 0; !over;) {
        catalog.refresh();
        const int seen = catalog.known("demo")->definition.batch_size;
        if (seen < last) ++backwards;
        last = seen;
      }
    });
  }
  for (int n = 101; n < 400; ++n) {
    database->exec(
        "UPDATE takt.jobs SET version = nextval('takt.definitions_version'), definition = jsonb_set(definition, '{batch_size}', '" +
        std::to_string(n) + "')");
  }
  over = true;
  for (auto& one : crowd) one.join();
  EXPECT_EQ(backwards, 0);
  catalog.refresh();
  EXPECT_EQ(catalog.known("demo")->definition.batch_size, 399);
}

TEST_F(CatalogTest, Finding19_AFailedQueryIsNoAnswer) {
  std::atomic<int> failed{0};
  std::vector<std::thread> crowd;
  database->exec("ALTER TABLE takt.jobs RENAME TO jobs_away");
  for (int i = 0; i < 4; ++i) {
    crowd.emplace_back([&] {
      try {
        catalog.look_up("later");
      } catch (const std::exception&) {
        ++failed;
      }
    });
  }
  for (auto& one : crowd) one.join();
  EXPECT_EQ(failed, 4);
  database->exec("ALTER TABLE takt.jobs_away RENAME TO jobs");
  EXPECT_EQ(why_not("later"), NoJob::unknown);
}

TEST_F(CatalogTest, Finding19_WhatThisBinaryDoesNotUnderstandIsNotUnknown) {
  const std::string bump = "UPDATE takt.jobs SET version = nextval('takt.definitions_version'), definition = ";
  database->exec(bump + "jsonb_set(definition, '{handler}', '{\"of_the_next_version\": {}}')");
  catalog.refresh();
  EXPECT_EQ(why_not("demo"), NoJob::unreadable);
  EXPECT_EQ(catalog.known("demo"), nullptr) << "nor is it run by the definition before";
  database->exec(bump + "jsonb_set(definition, '{handler}', '{\"native\": {\"name\": \"noop\"}}')");
  catalog.refresh();
  EXPECT_TRUE(finds("demo"));
  database.apply(plain_job("other"));
  catalog.refresh();
  EXPECT_EQ(why_not("demo"), NoJob::unknown) << "removed";
}

TEST_F(CatalogTest, Finding33_KnowsTheQueuesOfAllJobsAlsoOfUnreadableOnes) {
  EXPECT_EQ(catalog.queues(), std::vector<std::string>{"default"});
  database.apply(plain_job("slow", "queue: slow") + plain_job("next", "queue: of-the-next-version") +
                 plain_job("bench", "queue: takt-bench"));
  database->exec("UPDATE takt.jobs SET definition = '{}' WHERE name = 'next'");
  catalog.refresh();
  EXPECT_EQ(catalog.queues(), (std::vector<std::string>{"default", "of-the-next-version", "slow"})) << "a measurement has its own worker";
  database.apply(plain_job("demo"));
  catalog.refresh();
  EXPECT_EQ(catalog.queues(), std::vector<std::string>{"default"});
}

struct IntakeTest : CatalogTest {
  static void SetUpTestSuite() { vhost = new TestVhost(); }
  static void TearDownTestSuite() {
    delete vhost;
    vhost = nullptr;
  }
  static TestVhost* vhost;

  Metrics metrics;
  KeyRing keys = KeyRing::parse("current " + generate_signing_secret().reveal(), "test");
  amqp::Publisher publisher{vhost->settings("intake"), {}};
  SignerCheck signer{*database, keys, clock};
  Intake intake{*database, keys, signer, catalog, publisher, clock, metrics, std::chrono::hours(24)};

  void SetUp() override {
    CatalogTest::SetUp();
    publisher.start();
    ASSERT_TRUE(publisher.wait_connected(10s));
    amqp::Channel(vhost->settings("setup")).purge_queue(amqp::kDeadQueue);
  }
  /// What the intake makes of a genuine tick.
  auto judge(const std::string& id, const std::string& job, bool redelivered = false) {
    const auto message = *tick_message({id, job, "default", "schedule", clock.now(), {}}, keys, clock.now());
    amqp::Delivery delivery;
    if (redelivered) delivery.headers["x-delivery-count"] = 5;
    delivery.content_type = message.content_type;
    delivery.routing_key = message.routing_key;
    delivery.message_id = message.message_id;
    for (const auto& [name, value] : message.headers) delivery.headers[name] = value;
    delivery.body = message.body;
    delivery.body_size = message.body.size();
    return intake.judge(delivery);
  }
  static std::uint64_t letters() { return amqp::Channel(vhost->settings("look")).inspect_queue(amqp::kDeadQueue)->messages; }
};
TestVhost* IntakeTest::vhost = nullptr;

TEST_F(IntakeTest, Finding19_ATickThatIsFasterThanItsJobsCommitWaitsAMoment) {
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t1", "new")));
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t2", "new"))) << "at the same moment";
  database.apply(plain_job("demo") + plain_job("new"));
  EXPECT_TRUE(std::holds_alternative<AcceptedTick>(judge("t1", "new", true)));
  EXPECT_TRUE(std::holds_alternative<AcceptedTick>(judge("t2", "new", true)));
  EXPECT_EQ(letters(), 0U);
}

TEST_F(IntakeTest, Finding19_ATickForNoJobIsDeadLetteredWhenItWasAskedForTwice) {
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t1", "mistaken")));
  own.advance(999ms);
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t1", "mistaken"))) << "an apply may take so long";
  EXPECT_TRUE(std::holds_alternative<Disposed>(judge("t1", "mistaken", true))) << "returned five times";
  EXPECT_EQ(letters(), 1U);
  own.advance(1s);
  EXPECT_TRUE(std::holds_alternative<Disposed>(judge("t2", "mistaken"))) << "a name that is known to be none needs no second question";
  EXPECT_EQ(letters(), 2U);
}

TEST_F(IntakeTest, Finding19_ATickForADefinitionOfANewerTaktIsNeverUnknown) {
  database->exec("UPDATE takt.jobs SET version = nextval('takt.definitions_version'), definition = definition - 'drain'");
  catalog.refresh();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t1", "demo", i > 0)));
  EXPECT_EQ(letters(), 0U);
}

TEST_F(IntakeTest, Finding20_ATickThatIsGivenUpIsFinishedAndNeverPublishedAgain) {
  database.apply(plain_job("demo") + plain_job("removed"));
  database.apply(plain_job("demo"));
  database->exec(R"sql(
    INSERT INTO takt.ticks (id, job_id, source, due_at, items, publish_at, published_at)
    SELECT 'removed/daily@2026-11-21T10:00:00Z', id, 'schedule', now(), '[{}]', now() - interval '1 hour', now() - interval '1 hour'
      FROM takt.jobs WHERE name = 'removed'
  )sql");
  const std::string id = "removed/daily@2026-11-21T10:00:00Z", row = "SELECT finished_at IS NULL FROM takt.ticks WHERE id = '" + id + "'";
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge(id, "removed")));
  EXPECT_EQ(database.text(row), "t") << "it is not given up yet";
  EXPECT_TRUE(std::holds_alternative<Disposed>(judge(id, "removed", true)));
  EXPECT_EQ(letters(), 1U);
  database->exec("UPDATE takt.leader SET holder = 'me', term = 1, until = now() + interval '1 hour'");
  EXPECT_EQ(republish_forgotten_ticks(*database, {"me", 1}, std::chrono::minutes(10)), 0);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NULL OR finished_at IS NULL"), 0);
}

TEST_F(IntakeTest, C17_Finding20_ATickThatWasFinishedWithItsJobMakesNoLetter) {
  database.apply(plain_job("demo") + plain_job("removed", "schedules: [{name: s, cron: '@every 1s'}]"));
  database->exec(
      "INSERT INTO takt.ticks (id, job_id, source, due_at, items, published_at)"
      " SELECT 'removed/s@2026-11-21T10:00:00Z', id, 'schedule', now(), '[{\"payload\": 1}]', now()"
      "   FROM takt.jobs WHERE name = 'removed'");
  database.apply(plain_job("demo"));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE payload = '1'"), 1) << "what it carried waits for its job";
  judge("removed/s@2026-11-21T10:00:00Z", "removed");
  EXPECT_TRUE(std::holds_alternative<Disposed>(judge("removed/s@2026-11-21T10:00:00Z", "removed", true)));
  EXPECT_EQ(letters(), 0U) << "replayed, it would bring the same a second time";
}
TEST_F(IntakeTest, Finding20_ATickWhoseLetterIsNotConfirmedStaysWhatItWas) {
  database->exec("INSERT INTO takt.ticks (id, job_id, source, due_at, published_at) VALUES ('t1', 99, 'schedule', now(), now())");
  publisher.stop();
  EXPECT_TRUE(std::holds_alternative<NotNow>(judge("t1", "removed", true)));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 1);
}

TEST_F(IntakeTest, Finding20_ATickWhoseRowCannotBeFinishedIsNotAcknowledged) {
  database->exec("CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$");
  database->exec("CREATE TRIGGER broken BEFORE UPDATE ON takt.ticks FOR EACH STATEMENT EXECUTE FUNCTION public.broken()");
  EXPECT_THROW(judge("t1", "removed", true), DatabaseError);
  EXPECT_EQ(letters(), 1U);
  database->exec("DROP TRIGGER broken ON takt.ticks");
  EXPECT_TRUE(std::holds_alternative<Disposed>(judge("t1", "removed", true))) << "again, with the same letter";
}

}  // namespace
}  // namespace takt
