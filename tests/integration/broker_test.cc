#include <gtest/gtest.h>

#include <thread>

#include "core/amqp/consumer.h"
#include "core/amqp/publisher.h"
#include "core/amqp/topology.h"
#include "tests/support/fixture.h"

namespace takt::amqp {
namespace {

using namespace std::chrono_literals;

Message message(const std::string& id, const std::string& key = "default", const std::string& body = "x") {
  return {kTicksExchange, key, "text/plain", id, {{"webhook-id", id}}, body};
}

/// As a wake tick is sent.
Message wake(const std::string& id, const std::string& key = "default", const std::string& body = "x") {
  auto wake = message(id, key, body);
  wake.exchange = kWakesExchange;
  wake.persistent = false;
  wake.detour = kTicksExchange;
  return wake;
}

struct BrokerTest : testing::Test {
  static void SetUpTestSuite() { vhost = new TestVhost(); }
  static void TearDownTestSuite() {
    delete vhost;
    vhost = nullptr;
  }
  static TestVhost* vhost;

  void SetUp() override {
    Channel channel(vhost->settings("setup"));
    declare_topology(channel, {"default"});
    channel.delete_queue(wake_queue("default"));
    for (const auto& queue : {tick_queue("default"), kDeadQueue, kQuarantineQueue}) channel.purge_queue(queue);
  }
  static std::uint64_t depth(const std::string& queue) {
    Channel channel(vhost->settings("look"));
    return channel.inspect_queue(queue)->messages;
  }
};
TestVhost* BrokerTest::vhost = nullptr;

/// A consumer that keeps what it gets.
struct Inbox {
  std::mutex mutex;
  std::vector<Delivery> received;
  Consumer consumer;
  explicit Inbox(BrokerSettings settings, std::uint16_t prefetch = 16, const std::string& queue = tick_queue("default"), bool wakes = false)
      : consumer(std::move(settings), {{queue}, prefetch, {"default"}, wakes}, [this](Delivery&& delivery) {
          const std::scoped_lock lock(mutex);
          received.push_back(std::move(delivery));
        }) {
    consumer.start();
  }
  std::size_t size() {
    const std::scoped_lock lock(mutex);
    return received.size();
  }
};

TEST_F(BrokerTest, ConfirmsWhatItTookAndReportsWhatNoQueueWants) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  std::vector<Message> messages;
  for (int i = 0; i < 3000; ++i) messages.push_back(message("m" + std::to_string(i)));
  messages[1500].exchange = "";
  messages[1500].routing_key = "nowhere";
  const auto outcomes = publisher.publish_all(std::move(messages), 30s);
  EXPECT_EQ(std::count(outcomes.begin(), outcomes.end(), Outcome::confirmed), 2999);
  EXPECT_EQ(outcomes[1500], Outcome::unroutable);
  EXPECT_EQ(depth(tick_queue("default")), 2999U);
}

TEST_F(BrokerTest, TellsHowDeepTheQueuesAreAndRestoresOneThatWasDeleted) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  for (int i = 0; i < 7; ++i) ASSERT_EQ(publisher.publish(message("m" + std::to_string(i)), 10s), Outcome::confirmed);
  EXPECT_TRUE(eventually([&] { return publisher.queue_depths()[tick_queue("default")] == 7; }));
  EXPECT_TRUE(publisher.queue_depths().contains(kDeadQueue));
  rabbitmqctl("delete_queue -p " + vhost->name() + " " + tick_queue("default"));
  EXPECT_TRUE(eventually([&] { return publisher.queue_depths()[tick_queue("default")] == 0; }));
  EXPECT_TRUE(eventually([&] { return publisher.publish(message("after"), 10s) == Outcome::confirmed; }));
}

TEST_F(BrokerTest, HoldsNoMoreThanThePrefetchUntilAcknowledged) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  for (int i = 0; i < 10; ++i) publisher.publish(message("m" + std::to_string(i)), 10s);
  Inbox inbox(vhost->settings("consumer"), 4);
  EXPECT_TRUE(eventually([&] { return inbox.size() == 4; }));
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(inbox.size(), 4U);
  for (int i = 0; i < 4; ++i) inbox.consumer.ack(inbox.received[static_cast<std::size_t>(i)]);
  EXPECT_TRUE(eventually([&] { return inbox.size() == 8; }));
  inbox.consumer.stop();
  EXPECT_TRUE(eventually([&] { return depth(tick_queue("default")) == 6; })) << "unacknowledged ones come back";
}

TEST_F(BrokerTest, DeadLettersARejectedMessageWithItsFacts) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  publisher.publish(message("doomed"), 10s);
  Inbox inbox(vhost->settings("consumer")), dead(vhost->settings("dead"), 16, kDeadQueue);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  inbox.consumer.reject(inbox.received[0], false);
  ASSERT_TRUE(eventually([&] { return dead.size() == 1; }));
  EXPECT_EQ(dead.received[0].headers["x-death"][0]["reason"], "rejected");
  EXPECT_EQ(dead.received[0].headers["x-death"][0]["queue"], tick_queue("default"));
}

TEST_F(BrokerTest, CutsABodyThatIsTooLongAndSaysHowLongItWas) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  ASSERT_EQ(publisher.publish(message("big", "default", std::string(3 * 1024 * 1024, 'b')), 10s), Outcome::confirmed);
  Inbox inbox(vhost->settings("consumer"));
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  EXPECT_EQ(inbox.received[0].body.size(), kMaxBodyBytes);
  EXPECT_EQ(inbox.received[0].body_size, 3U * 1024 * 1024);
}

TEST_F(BrokerTest, ReconnectsAfterTheBrokerClosedEveryConnection) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  Inbox inbox(vhost->settings("consumer"));
  ASSERT_EQ(publisher.publish(message("before"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  rabbitmqctl("close_all_connections --global 'a test says so'");
  EXPECT_TRUE(eventually([&] { return publisher.reconnects() >= 1 && publisher.state().connected; }));
  EXPECT_TRUE(eventually([&] { return publisher.publish(message("after"), 5s) == Outcome::confirmed; }));
  EXPECT_TRUE(eventually([&] { return inbox.size() >= 3; })) << "the unacknowledged one again, and the new one";
  inbox.consumer.ack(inbox.received[0]);  // of the lost connection: ignored, not an error
  EXPECT_TRUE(inbox.consumer.wait_connected(5s));
}

TEST_F(BrokerTest, RestoresAQueueThatWasDeletedUnderIt) {
  Inbox inbox(vhost->settings("consumer"));
  ASSERT_TRUE(inbox.consumer.wait_connected(10s));
  rabbitmqctl("delete_queue --vhost " + vhost->name() + " " + tick_queue("default"));
  // RabbitMQ 3.10 can lose a consumer when another connection declares the queue again before the cancellation is out.
  ASSERT_TRUE(eventually([&] { return inbox.consumer.reconnects() >= 1 && inbox.consumer.state().connected; }));
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  EXPECT_TRUE(eventually([&] { return publisher.publish(message("again"), 5s) == Outcome::confirmed; }));
  EXPECT_TRUE(eventually([&] { return inbox.size() >= 1; }));
}

TEST_F(BrokerTest, NamesTheQueueAndTheDifferenceWhenOneExistsOtherwise) {
  Channel channel(vhost->settings("setup"));
  channel.declare_queue(tick_queue("odd"), {{"x-queue-type", "quorum"}, {"x-delivery-limit", std::int64_t{3}}});
  try {
    declare_topology(channel, {"odd"});
    FAIL();
  } catch (const TopologyMismatch& error) {
    EXPECT_NE(std::string(error.what()).find(tick_queue("odd")), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("x-dead-letter-exchange"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(declare_topology(channel, {"default"})) << "the channel is usable after it";
}

TEST_F(BrokerTest, Finding33_APublisherDeclaresAQueueBeforeItsFirstTick) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  std::vector<Message> messages;
  for (int i = 0; i < 300; ++i) messages.push_back(message("m" + std::to_string(i), i % 2 == 0 ? "default" : "new-" + vhost->name()));
  for (const auto outcome : publisher.publish_all(std::move(messages), 30s)) EXPECT_EQ(outcome, Outcome::confirmed);
  EXPECT_EQ(depth(tick_queue("new-" + vhost->name())), 150U);
  EXPECT_TRUE(eventually([&] { return publisher.queue_depths()[tick_queue("new-" + vhost->name())] == 150; }));
  EXPECT_EQ(publisher.reconnects(), 0U);
}

TEST_F(BrokerTest, Finding33_AConsumerTakesNewQueuesAndKeepsWhatItHoldsOfOthers) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  publisher.publish(message("held"), 10s);
  Inbox inbox(vhost->settings("consumer"));
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  inbox.consumer.consume_ticks({"added", "another"});
  for (const auto* queue : {"added", "another"}) ASSERT_EQ(publisher.publish(message(queue, queue), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 3; }));
  for (auto& delivery : inbox.received) inbox.consumer.ack(delivery);
  EXPECT_EQ(inbox.consumer.reconnects(), 0U);
  rabbitmqctl("close_all_connections --global 'a test says so'");
  ASSERT_TRUE(eventually([&] { return inbox.consumer.reconnects() == 1 && publisher.reconnects() == 1 && publisher.state().connected; }));
  EXPECT_EQ(inbox.size(), 3U) << "all were acknowledged";
  for (const auto* queue : {"default", "added", "another"}) ASSERT_EQ(publisher.publish(message("again", queue), 10s), Outcome::confirmed);
  EXPECT_TRUE(eventually([&] { return inbox.size() == 6; }));
}

TEST_F(BrokerTest, Finding33_AQueueThatExistsOtherwiseKeepsNobodyFromTheOthers) {
  Channel(vhost->settings("setup"))
      .declare_queue(tick_queue("other-wise"), {{"x-queue-type", "quorum"}, {"x-delivery-limit", std::int64_t{3}}});
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  Inbox inbox(vhost->settings("consumer"));
  publisher.publish(message("held"), 10s);
  inbox.consumer.consume_ticks({"before", "other-wise", "zuletzt"});
  std::vector<Message> messages;
  for (const auto* queue : {"other-wise", "before", "zuletzt"}) messages.push_back(message(queue, queue));
  EXPECT_EQ(publisher.publish_all(std::move(messages), 10s), (std::vector{Outcome::unroutable, Outcome::confirmed, Outcome::confirmed}));
  EXPECT_TRUE(eventually([&] { return inbox.size() == 3; }));
  EXPECT_EQ(inbox.consumer.reconnects() + publisher.reconnects(), 0U);
  rabbitmqctl("delete_queue -p " + vhost->name() + " " + tick_queue("other-wise"));
}

TEST_F(BrokerTest, Finding33_AQueueThatNoJobUsesIsConsumedUntilItIsDeleted) {
  Publisher publisher(vhost->settings("publisher"), {1000, 5s, {}});
  publisher.start();
  Inbox inbox(vhost->settings("consumer"));
  inbox.consumer.consume_ticks({"kept", "left"});
  ASSERT_EQ(publisher.publish(message("m0", "left"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  inbox.consumer.consume_ticks({"kept"});
  ASSERT_EQ(publisher.publish(message("m1", "left"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 2; }));
  rabbitmqctl("delete_queue -p " + vhost->name() + " " + tick_queue("left"));
  ASSERT_EQ(publisher.publish(message("m2", "kept"), 10s), Outcome::confirmed);
  EXPECT_TRUE(eventually([&] { return inbox.size() == 3; }));
  EXPECT_TRUE(eventually([&] { return !publisher.queue_depths().contains(tick_queue("left")); }));
  EXPECT_EQ(inbox.consumer.reconnects() + publisher.reconnects(), 0U);
  EXPECT_FALSE(Channel(vhost->settings("look")).inspect_queue(tick_queue("left"))) << "nobody declared it again";
}

/// Takes wake ticks, too, and says by which exchange each message came.
struct Woken : Inbox {
  explicit Woken(std::uint16_t prefetch = 16) : Inbox(BrokerTest::vhost->settings("woken"), prefetch, tick_queue("default"), true) {
    EXPECT_TRUE(eventually([] { return Channel(BrokerTest::vhost->settings("look")).inspect_queue(wake_queue("default")).has_value(); }));
    EXPECT_TRUE(
        eventually([] { return Channel(BrokerTest::vhost->settings("look")).inspect_queue(wake_queue("default"))->consumers == 1; }));
  }
  std::vector<std::string> ways() {
    const std::scoped_lock lock(mutex);
    std::vector<std::string> ways;
    for (const auto& delivery : received) ways.push_back(delivery.message_id + " by " + delivery.exchange);
    return ways;
  }
};

TEST_F(BrokerTest, R6_AWakeTickGoesByItsOwnQueueWhereAWorkerTakesItAndElseByTheTicks) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  EXPECT_EQ(publisher.publish(wake("nobody"), 10s), Outcome::confirmed);
  EXPECT_EQ(depth(tick_queue("default")), 1U) << "returned, and sent again, at once";
  EXPECT_EQ(publisher.losses(), 0U);
  Woken inbox;
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  EXPECT_EQ(inbox.ways(), (std::vector<std::string>{"nobody by takt.ticks"}));
  EXPECT_TRUE(eventually([&] {  // for a second, others go the same way
    publisher.publish(wake("somebody"), 10s);
    const auto ways = inbox.ways();
    return std::find(ways.begin(), ways.end(), "somebody by takt.wakes") != ways.end();
  }));
  EXPECT_EQ(publisher.reconnects() + inbox.consumer.reconnects(), 0U);
}

TEST_F(BrokerTest, AWakeTickThatIsPutBackOrThatNobodyTakesGoesOnAmongTheTicks) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  Woken inbox(1);
  ASSERT_EQ(publisher.publish(wake("first"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  inbox.consumer.put_back(inbox.received[0]);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 2; }));
  inbox.consumer.put_back(inbox.received[1]);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 3; }));
  EXPECT_EQ(inbox.received[2].times_returned(), 1) << "where its returns are counted";
  // Two of wake ticks that it does not answer: the second waits for a second.
  for (const auto* id : {"kept", "late"}) ASSERT_EQ(publisher.publish(wake(id), 10s), Outcome::confirmed);
  inbox.consumer.ack(inbox.received[2]);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 5; }));
  EXPECT_EQ(inbox.ways(), (std::vector<std::string>{"first by takt.wakes", "first by takt.ticks", "first by takt.ticks",
                                                    "kept by takt.wakes", "late by takt.ticks"}));
}

TEST_F(BrokerTest, AWakeTickThatIsRefusedOrUnansweredTakesTheDetourAndTheConnectionStays) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  auto inbox = std::make_unique<Woken>();
  ASSERT_EQ(publisher.publish(wake("taken"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox->size() == 1; }));
  rabbitmqctl("set_policy -p " + vhost->name() + " full ^takt.wakes '{\"max-length\": 0}' --apply-to queues");
  inbox->consumer.stop();
  inbox.reset();
  Channel(vhost->settings("purge")).purge_queue(tick_queue("default"));
  std::vector<Message> messages;
  for (int i = 0; i < 300; ++i) messages.push_back(wake("m" + std::to_string(i)));
  for (const auto outcome : publisher.publish_all(std::move(messages), 30s)) EXPECT_EQ(outcome, Outcome::confirmed);
  EXPECT_EQ(depth(tick_queue("default")), 300U);
  EXPECT_EQ(publisher.losses(), 1U) << "the dispatcher wakes once more what it had sent before";
  rabbitmqctl("clear_policy -p " + vhost->name() + " full");
  EXPECT_EQ(publisher.reconnects(), 0U);
}

TEST_F(BrokerTest, AConnectionThatIsLostMayHaveLostWakeTicksThatWereConfirmed) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  ASSERT_EQ(publisher.publish(message("on disk"), 10s), Outcome::confirmed);
  const auto lose = [&] {
    const auto before = publisher.reconnects();
    rabbitmqctl("close_all_connections --global 'a test says so'");
    return eventually([&] { return publisher.reconnects() > before && publisher.state().connected; });
  };
  ASSERT_TRUE(lose());
  EXPECT_EQ(publisher.losses(), 0U);
  Woken inbox;
  ASSERT_EQ(publisher.publish(wake("on no disk"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 2; }));
  ASSERT_TRUE(lose());
  EXPECT_EQ(publisher.losses(), 1U);
  ASSERT_TRUE(lose());
  EXPECT_EQ(publisher.losses(), 1U) << "once";
}

/// An alternate exchange that hands on what nobody takes: to the broker, such a message is no returned one.
TEST_F(BrokerTest, WhatIsPutBackGoesByTheQueueItCameFromWhateverItsExchangeWas) {
  rabbitmqctl("set_policy -p " + vhost->name() + " others ^takt.wakes$ '{\"alternate-exchange\": \"takt.ticks\"}' --apply-to exchanges");
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  Inbox inbox(vhost->settings("consumer"));
  auto direct = wake("m");
  direct.detour.clear();
  EXPECT_TRUE(eventually([&] { return publisher.publish(direct, 10s) == Outcome::confirmed; }));
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  inbox.consumer.put_back(inbox.received[0]);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 2; }));
  EXPECT_EQ(inbox.received[1].times_returned(), 1) << "and is no dead letter";
  rabbitmqctl("clear_policy -p " + vhost->name() + " others");
}

TEST_F(BrokerTest, R8_AWakeQueueThatIsDeletedOrExistsOtherwiseDisturbsNoTick) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  Woken inbox;
  rabbitmqctl("delete_queue --vhost " + vhost->name() + " " + wake_queue("default"));
  ASSERT_TRUE(eventually([] { return Channel(vhost->settings("look")).inspect_queue(wake_queue("default")).has_value(); })) << "made anew";
  EXPECT_EQ(publisher.publish(wake("anew"), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 1; }));
  Channel(vhost->settings("setup")).declare_queue(wake_queue("unlike"), {{"x-queue-type", "classic"}, {"x-expires", std::int64_t{60'000}}});
  inbox.consumer.consume_ticks({"unlike", "even"});
  EXPECT_TRUE(eventually([] { return Channel(vhost->settings("look")).inspect_queue(wake_queue("even")).has_value(); }));
  for (const auto* queue : {"unlike", "even"}) EXPECT_EQ(publisher.publish(wake(queue, queue), 10s), Outcome::confirmed);
  ASSERT_TRUE(eventually([&] { return inbox.size() == 3; }));
  EXPECT_EQ(publisher.reconnects() + inbox.consumer.reconnects(), 0U);
}

TEST_F(BrokerTest, AWakeQueueIsGoneSomeTimeAfterItsLastConsumer) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  { Woken inbox; }
  auto direct = wake("m");
  direct.detour.clear();
  EXPECT_EQ(publisher.publish(direct, 10s), Outcome::confirmed);
  // Not by looking at it: a declaration, also a passive one, would begin its ten seconds anew.
  EXPECT_TRUE(eventually([&] { return publisher.publish(direct, 10s) == Outcome::unroutable; }, 40));
}

TEST_F(BrokerTest, RefusesWrongCredentialsWithoutShowingThem) {
  auto settings = vhost->settings("wrong");
  settings.url = Secret("amqp://takt:hunter2@" + settings.url.reveal().substr(settings.url.reveal().rfind('@') + 1));
  try {
    Channel channel(settings);
    FAIL();
  } catch (const BrokerUnavailable& error) {
    EXPECT_EQ(std::string(error.what()).find("hunter2"), std::string::npos) << error.what();
  }
}

TEST_F(BrokerTest, EndsEveryWaitWhenTheBrokerIsAway) {
  BrokerSettings away;
  away.url = Secret("amqp://takt:x@127.0.0.1:1/");
  Publisher publisher(std::move(away), {});
  publisher.start();
  EXPECT_NE(publisher.publish(message("m"), 300ms), Outcome::confirmed);
  EXPECT_FALSE(publisher.wait_connected(100ms));
}

TEST_F(BrokerTest, WaitsWhileTheBrokerBlocksPublishingAndGoesOnAfter) {
  Publisher publisher(vhost->settings("publisher"), {});
  publisher.start();
  ASSERT_EQ(publisher.publish(message("first"), 10s), Outcome::confirmed);
  rabbitmqctl("set_vm_memory_high_watermark 0.00001");
  publisher.publish_unwatched(message("poke"));  // the broker tells a connection that it is blocked when it publishes
  EXPECT_TRUE(eventually([&] { return publisher.state().blocked; }));
  EXPECT_EQ(publisher.publish(message("meanwhile"), 300ms), Outcome::timed_out);
  EXPECT_TRUE(publisher.state().connected);
  EXPECT_NE(publisher.state().fault.find("memory"), std::string::npos) << publisher.state().fault;
  rabbitmqctl("set_vm_memory_high_watermark 0.4");
  EXPECT_TRUE(eventually([&] { return !publisher.state().blocked; }));
  EXPECT_EQ(publisher.publish(message("after"), 10s), Outcome::confirmed);
}

}  // namespace
}  // namespace takt::amqp
