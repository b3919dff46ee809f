#include "dispatcher/outbox.h"

#include <gtest/gtest.h>

#include "core/amqp/topology.h"
#include "dispatcher/dispatcher.h"
#include "dispatcher/schedule_scan.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct OutboxTest : testing::Test {
  TestDatabase database;
  Metrics metrics;
  FakeClock clock;
  KeyRing keys = KeyRing::parse("current " + generate_signing_secret().reveal(), "test");
  amqp::Publisher publisher{nowhere(), {}};
  Outbox outbox{*database, publisher, keys, clock, metrics};

  TickRow tick(const std::string& id, std::chrono::microseconds in) const {
    return {id, "demo", "default", "schedule", clock.now(), {}, clock.now() + in};
  }
  std::string taken() {
    std::string ids;
    for (const auto& tick : outbox.take_offered(Duration(0))) ids += tick.id;
    return ids;
  }
};

TEST_F(OutboxTest, HoldsEachTickUntilItsTimeAndGivesTheEarliestFirst) {
  outbox.offer({tick("c", 400ms), tick("b", 300ms), tick("a", -1h)});
  EXPECT_EQ(taken(), "a") << "late already: at once";
  clock.advance(299ms);
  EXPECT_EQ(taken(), "");
  clock.advance(1ms);
  EXPECT_EQ(taken(), "b");
  outbox.offer({tick("d", 50ms)});
  clock.advance(100ms);
  EXPECT_EQ(taken(), "dc");
  EXPECT_EQ(taken(), "") << "each once";
}

TEST_F(OutboxTest, SignsForTheTimeAtWhichATickLeaves) {
  outbox.offer({tick("a", 0ms), tick("b", 400ms)});
  const auto signed_at = [](const Outbox::Signed& one) {
    for (const auto& [key, value] : one.message.headers) {
      if (key == "webhook-timestamp") return std::stoll(value);
    }
    return 0LL;
  };
  const auto first = outbox.take_offered(Duration(0));
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(signed_at(first[0]), to_unix_us(clock.now()) / 1'000'000);
  const auto leaves = clock.now() + 400ms;
  clock.advance(400ms);
  const auto second = outbox.take_offered(Duration(0));
  ASSERT_EQ(second.size(), 1U);
  EXPECT_EQ(signed_at(second[0]), to_unix_us(leaves) / 1'000'000);
}

TEST_F(OutboxTest, HoldsNothingForLongerThanSlotsAreStoredAheadWhateverTheClockSays) {
  outbox.offer({tick("a", 1h)});
  clock.advance(ScheduleScan::kAhead - 1ms);
  EXPECT_EQ(taken(), "");
  clock.advance(1ms);
  EXPECT_EQ(taken(), "a");
}

TEST_F(OutboxTest, ALeaderThatWasForgetsWhatItHeld) {
  outbox.offer({tick("a", 100ms)});
  outbox.forget_offers();
  clock.advance(1s);
  EXPECT_EQ(taken(), "");
}

TEST_F(OutboxTest, WaitsForWhatItHoldsBeforeItStops) {
  const SystemClock real;
  Outbox stopping(*database, publisher, keys, real, metrics);
  const auto fires = real.now() + 200ms;
  stopping.offer({{"a", "demo", "default", "schedule", fires, {}, fires}});
  stopping.stop();
  const auto held = stopping.take_offered(Duration(0));
  ASSERT_EQ(held.size(), 1U);
  EXPECT_GE(real.now(), fires) << "not before its time either";
  EXPECT_TRUE(stopping.take_offered(1h).empty()) << "and for nothing else";
}

/// A dispatcher with two connections to a broker of its own.
struct DispatcherOutboxTest : OutboxTest {
  const TestVhost vhost;
  const SystemClock real;
  amqp::Publisher first{vhost.settings("first"), {}};

  Dispatcher::Settings settings() const {
    Dispatcher::Settings settings;
    settings.scan_interval = 200ms;
    settings.leader_lease = 10s;
    settings.republish_after = 1h;
    settings.retention = {std::chrono::days(7), 72h, 720h};
    return settings;
  }
};

TEST_F(DispatcherOutboxTest, SlotsLeaveInTimeWhileOneOfTheTwoConnectionsIsAway) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '* * * * * *'}]"));
  first.start();
  publisher.start();
  ASSERT_TRUE(first.wait_connected(20s));
  Dispatcher dispatcher(*database, *database, first, publisher, keys, real, metrics, settings());
  dispatcher.start();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NOT NULL") >= 4; }));
  dispatcher.stop();
  EXPECT_EQ(metrics.text().find("takt_publish_failed_total{"), std::string::npos) << "none was given to the one that is away";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NULL AND due_at < now() - interval '1 s'"), 0);
}

TEST_F(DispatcherOutboxTest, AWakeTickIsSentByAnotherWayWhereTheOneBeforeItWokeNobody) {
  amqp::Channel channel(vhost.settings("look"));
  amqp::declare_topology(channel, {"default"});
  ASSERT_TRUE(amqp::try_declare_wake_queue(channel, "default"));
  first.start();
  Outbox sender(*database, first, keys, real, metrics);
  const auto depth = [&](const std::string& queue) { return channel.inspect_queue(queue)->messages; };
  ASSERT_TRUE(sender.publish_wake({"due:1", "demo", "default", "due", real.now(), {}}, true));
  EXPECT_TRUE(eventually([&] { return depth(amqp::tick_queue("default")) == 1; }));
  ASSERT_TRUE(sender.publish_wake({"due:2", "demo", "default", "due", real.now(), {}}, false));
  EXPECT_TRUE(eventually([&] { return depth(amqp::wake_queue("default")) == 1; }));
}

TEST_F(DispatcherOutboxTest, Finding18_ATickThatNoMessageCanCarryStopsNoOther) {
  database.apply(plain_job("demo"));
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at, items) SELECT t.id, j.id, 'replay', now(), now() - "
                  "interval '1 min', t.items::jsonb"
                  "  FROM takt.jobs j, (VALUES ('a-number', '[{\"payload\": 1e1000}]'), ('too-large', '[{\"payload\": \"' || repeat('x', "
                  "1100000) || '\"}]'),"
                  "                            ('sound', '[{\"payload\": 7}]')) t(id, items)"));
  database->exec(
      std::string("INSERT INTO takt.dead_letter_outbox (id, body) SELECT 'item-1-0', takt.dead_letter(1, 0::smallint, 'demo', 'fatal', '', "
                  "NULL, '1', 1, 0::smallint)"));
  first.start();
  publisher.start();
  ASSERT_TRUE(first.wait_connected(20s));
  Dispatcher dispatcher(*database, *database, first, publisher, keys, real, metrics, settings());
  dispatcher.start();
  EXPECT_TRUE(
      eventually([&] { return database.number("SELECT count(*) FROM takt.ticks WHERE id = 'sound' AND published_at IS NOT NULL") == 1; }));
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.dead_letter_outbox") == 0; })) << "letters leave, too";
  EXPECT_EQ(database.text("SELECT string_agg(id || ' ' || reason, ', ' ORDER BY id) FROM takt.dead_letters"),
            "tick-a-number field_limit, tick-too-large field_limit");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND published_at IS NULL"), 0);
}

TEST_F(DispatcherOutboxTest, ANewLeaderSendsInTimeWhatTheOneBeforeItHadStoredAhead) {
  database.apply(plain_job("demo", "schedules: [{name: s, cron: '0 0 1 1 *'}]"));
  amqp::Publisher second(vhost.settings("second"), {});
  first.start();
  second.start();
  ASSERT_TRUE(first.wait_connected(20s) && second.wait_connected(20s));
  database->exec(
      std::string("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at) SELECT 'demo/s@x', id, 'schedule', t, t "
                  "FROM takt.jobs, (SELECT now() + interval '450 ms' AS t) soon"));
  Dispatcher dispatcher(*database, *database, first, second, keys, real, metrics, settings());
  dispatcher.start();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.ticks WHERE published_at IS NOT NULL") == 1; }));
  dispatcher.stop();
  EXPECT_EQ(database.text("SELECT published_at BETWEEN publish_at AND publish_at + interval '2 s' FROM takt.ticks"), "t")
      << "and not by the sweep";
}

}  // namespace
}  // namespace takt
