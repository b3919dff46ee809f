#include "dlq/archive.h"

#include <gtest/gtest.h>

#include <random>

#include "core/amqp/topology.h"
#include "core/text/text.h"
#include "core/tick/tick.h"
#include "core/tick/tick_message.h"
#include "dlq/operations.h"
#include "tests/support/fixture.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

/// The service on a real queue, to which letters come as their senders sign them.
struct ArchiveTest : testing::Test {
  TestDatabase database;
  const TestVhost vhost;
  const SystemClock clock;
  Metrics metrics;
  const KeyRing keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  amqp::Publisher publisher{vhost.settings("publisher"), {}};
  SignerCheck signer{*database, keys, clock};
  Archive archive{*database, vhost.settings("archive"), keys, signer, clock, metrics};

  void SetUp() override {
    database.apply(plain_job("demo"));
    publisher.start();
    ASSERT_TRUE(publisher.wait_connected(20s));
  }
  void TearDown() override {
    archive.stop();
    publisher.stop();
  }
  amqp::Message letter(int item, const std::string& payload) const { return letter(item, payload, keys); }
  amqp::Message letter(int item, const std::string& payload, const KeyRing& signer_keys) const {
    v1::DeadLetter letter;
    letter.set_id("item-" + std::to_string(item) + "-0");
    letter.set_kind(v1::DeadLetter::KIND_ITEM);
    letter.set_job("demo");
    letter.set_reason("max_attempts");
    letter.set_item_id(item);
    letter.set_payload_json(payload);
    letter.set_attempts(3);
    set_timestamp(*letter.mutable_died_at(), clock.now());
    return dead_letter_message(letter.id(), kProtobufType, letter.SerializeAsString(), signer_keys, clock.now());
  }
  void publish(std::vector<amqp::Message> messages) {
    for (const auto outcome : publisher.publish_all(std::move(messages), 30s)) ASSERT_EQ(outcome, amqp::Outcome::confirmed);
  }
  /// Ten genuine letters, one of them refused by PostgreSQL; then letters that a stranger signed; then another genuine one.
  void flood(int strangers, std::size_t bytes) {
    const auto stranger = KeyRing::parse(generate_signing_secret().reveal(), "stranger");
    std::mt19937 random(1);
    std::vector<amqp::Message> messages;
    for (int item = 1; item <= 10; ++item) messages.push_back(letter(item, item == 5 ? "[1e200000]" : "{}"));
    for (int item = 1001; item <= 1000 + strangers; ++item) {
      std::string noise;  // what does not shrink
      while (noise.size() < bytes) noise += static_cast<char>('a' + random() % 26);
      messages.push_back(letter(item, "\"" + noise + "\"", stranger));
    }
    messages.push_back(letter(11, "{}"));
    publish(std::move(messages));
  }
  std::uint64_t waiting() const {
    amqp::Channel channel(vhost.settings("look"));
    return channel.inspect_queue(amqp::kDeadQueue)->messages;
  }
};

TEST_F(ArchiveTest, C21_WithoutTheLeadersKeyALetterOfItsGoesBackAndIsNoMessage) {
  const KeyRing leaders = KeyRing::parse(generate_signing_secret().reveal(), "test");
  database->exec(
      std::string("INSERT INTO takt.services (id, kind, roles, host, pid, version, keys, queues, ready, detail, runs, places)"
                  " VALUES ('leader', 'dispatcher', '{dispatcher}', 'h', 1, '1', ARRAY['current ' || $1], '{}', true, '', 0, 0)"),
      Params::of(leaders.keys()[0].fingerprint));
  database->exec(std::string("UPDATE takt.leader SET holder = 'leader@h', term = 1, until = now() + interval '1 h'"));
  auto foreign = letter(1, "{}");
  const auto tick_like = dead_letter_message("item-1-0", kProtobufType, foreign.body, leaders, clock.now());
  ASSERT_EQ(publisher.publish(tick_like, 10s), amqp::Outcome::confirmed);
  ASSERT_EQ(publisher.publish(letter(2, "{}"), 10s), amqp::Outcome::confirmed);
  archive.start();
  EXPECT_TRUE(eventually([&] { return database.text("SELECT string_agg(id, ',') FROM takt.dead_letters") == "item-2-0"; })) << "its own";
  EXPECT_TRUE(eventually([&] { return !archive.health().back().ok; }));
  EXPECT_NE(archive.health().back().detail.find("lacks the key " + leaders.keys()[0].fingerprint), std::string::npos);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters"), 1);
  archive.stop();
  EXPECT_TRUE(eventually([&] { return waiting() == 1; })) << "for an archive that has the key";
}

TEST_F(ArchiveTest, C18_Finding24_OfManyLettersTheOnesThatPostgresqlRefusesAreSetAsideAndTheArchiveGoesOn) {
  // One that jsonb refuses, though it is JSON; and one for a reason that nobody foresees.
  database->exec(std::string("ALTER TABLE takt.dead_letters ADD CONSTRAINT unforeseen CHECK (id <> 'item-77-0')"));
  std::vector<amqp::Message> messages;
  for (int item = 1; item <= 250; ++item)
    messages.push_back(letter(item, item == 30 ? "[1e200000]" : "{\"n\": " + std::to_string(item) + "}"));
  const auto refused = messages[29].body;
  for (const auto outcome : publisher.publish_all(std::move(messages), 30s)) ASSERT_EQ(outcome, amqp::Outcome::confirmed);
  archive.start();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.dead_letters") == 250; }));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item' AND (payload->>'n')::integer = item_id"), 248);
  EXPECT_EQ(database.text("SELECT string_agg(left(error, 60), '; ' ORDER BY error) FROM takt.dead_letters WHERE kind = 'message'"),
            "PostgreSQL refused it as a letter: new row for relation \"dea; PostgreSQL refused it as a letter: value overflows numeric f");
  EXPECT_EQ(database
                ->exec(std::string("SELECT count(*) FROM takt.dead_letters WHERE kind = 'message' AND encode(body, 'hex') = $1"),
                       Params::of(to_hex(refused)))
                .integer(0, 0),
            1)
      << "as it came";
  LetterFilter set_aside;
  set_aside.kind = "message";
  EXPECT_EQ(replay_letters(*database, open_letters(*database, set_aside, 10), "ada").refused, 2);

  ASSERT_EQ(publisher.publish(letter(1000, "1"), 10s), amqp::Outcome::confirmed);
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.dead_letters WHERE item_id = 1000") == 1; }));
  archive.stop();
  EXPECT_TRUE(eventually([&] { return waiting() == 0; })) << "acknowledged, those set aside too";
}

TEST_F(ArchiveTest, Finding34_OfMessagesThatNobodySignedTheNewestAreKeptAndEachGenuineLetter) {
  Archive bounded(*database, vhost.settings("bounded"), keys, signer, clock, metrics, {20, 1024 * 1024});
  flood(300, 100);
  bounded.start();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.dead_letters WHERE item_id = 11") == 1; }));
  bounded.stop();
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item'"), 10);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE kind = 'message' AND genuine"), 1) << "set aside, but Takt's";
  const auto kept = database.number("SELECT count(*) FROM takt.dead_letters WHERE NOT genuine");
  EXPECT_LE(kept, 20);
  EXPECT_GE(kept, 18);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE NOT genuine AND id LIKE 'message-item-1300-0-%'"), 1)
      << "the newest";
}

TEST_F(ArchiveTest, Finding34_WhatNobodySignedIsBoundedInBytesToo) {
  constexpr std::int64_t kBytes = 64 * 1024;
  Archive bounded(*database, vhost.settings("bounded"), keys, signer, clock, metrics, {10'000, kBytes});
  flood(50, 8000);
  bounded.start();
  EXPECT_TRUE(eventually([&] { return database.number("SELECT count(*) FROM takt.dead_letters WHERE item_id = 11") == 1; }));
  bounded.stop();
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE genuine"), 11);
  EXPECT_LE(database.number("SELECT sum(pg_column_size(body)) FROM takt.dead_letters WHERE NOT genuine"), kBytes);
  EXPECT_GE(database.number("SELECT count(*) FROM takt.dead_letters WHERE NOT genuine"), 5);
}

}  // namespace
}  // namespace takt
