#include "dlq/letter.h"

#include <gtest/gtest.h>

#include "core/tick/tick.h"
#include "core/tick/tick_message.h"
#include "tests/support/clock.h"

namespace takt {
namespace {

struct LetterTest : testing::Test {
  FakeClock clock;
  KeyRing keys = KeyRing::parse(generate_signing_secret().reveal(), "test");

  static amqp::Delivery delivered(const amqp::Message& message) {
    amqp::Delivery delivery;
    delivery.content_type = message.content_type;
    delivery.body = message.body;
    delivery.body_size = message.body.size();
    for (const auto& [name, value] : message.headers) delivery.headers[name] = value;
    return delivery;
  }
  amqp::Delivery tick_delivery() {
    auto delivery = delivered(
        *tick_message({"demo/daily@x", "demo", "default", "schedule", clock.now(), R"([{"payload":1,"key":"k"}])"}, keys, clock.now()));
    delivery.headers["x-death"] = {{{"reason", "delivery_limit"}, {"queue", "takt.ticks.default"}, {"count", 1}}};
    return delivery;
  }
};

TEST_F(LetterTest, ReadsAnItemsDeath) {
  const auto letter = read_letter(
      delivered(dead_letter_message("item-7-0", kJsonType, R"({"id":"item-7-0","kind":"KIND_ITEM","job":"demo","reason":"max_attempts",
      "error":"http_500: no","itemId":"7","key":"k","payload":{"a":1},"attempts":3,"priority":-2,"diedAt":"2026-11-21T10:00:00Z"})",
                                    keys, clock.now())),
      keys, clock.now());
  EXPECT_EQ(letter.kind, "item");
  EXPECT_EQ(letter.id, "item-7-0");
  EXPECT_EQ(letter.item_id, 7);
  EXPECT_EQ(letter.payload, R"({"a":1})");
  EXPECT_EQ(letter.attempts, 3);
}

TEST_F(LetterTest, KeepsAForgedDeathAsAMessageThatCannotBeReplayed) {
  const auto other = KeyRing::parse(generate_signing_secret().reveal(), "forger");
  const auto letter = read_letter(
      delivered(dead_letter_message("item-7-0", kJsonType, R"({"id":"item-7-0","kind":"KIND_ITEM","job":"demo"})", other, clock.now())),
      keys, clock.now());
  EXPECT_EQ(letter.kind, "message");
  EXPECT_FALSE(letter.genuine) << "nobody's, and bounded";
  EXPECT_NE(letter.error.find("cannot be replayed"), std::string::npos);
  EXPECT_EQ(letter.headers->find("webhook-signature"), std::string::npos);
}

TEST_F(LetterTest, Finding6_TakesForALetterOnlyWhatTheLetterKeySigned) {
  const std::string body = R"({"id":"item-7-0","kind":"KIND_ITEM","job":"demo","itemId":"7","payload":{"evil":true}})";
  const auto genuine = dead_letter_message("item-7-0", kJsonType, body, keys, clock.now());
  EXPECT_EQ(read_letter(delivered(genuine), keys, clock.now()).kind, "item");
  const auto webhooks = keys.webhooks("demo");
  for (const auto* signer : {&keys.ticks(), webhooks.get()}) {
    auto forged = signed_message("takt.dlx", "", "item-7-0", kJsonType, body, *signer, clock.now());
    forged.headers["takt-kind"] = "dead-letter";
    EXPECT_EQ(read_letter(delivered(forged), keys, clock.now()).kind, "message");
  }
}

TEST_F(LetterTest, Finding6_TakesForATickOnlyWhatTheTickKeySigned) {
  const std::string body = R"({"id":"item-7","job":"demo","items":[{"payload":{"evil":true}}]})";
  EXPECT_EQ(
      read_letter(delivered(signed_message("takt.dlx", "", "item-7", kJsonType, body, keys.ticks(), clock.now())), keys, clock.now()).kind,
      "tick");
  const auto webhooks = keys.webhooks("demo");
  for (const auto* signer : {&keys.letters(), webhooks.get()}) {
    const auto forged = signed_message("takt.dlx", "", "item-7", kJsonType, body, *signer, clock.now());
    EXPECT_EQ(read_letter(delivered(forged), keys, clock.now()).kind, "message");
  }
}

// What is signed is the header's id: a letter under another one would be archived, and replayed, a second time.
TEST_F(LetterTest, Finding6_KeepsALetterWhoseIdIsNotItsSignedOneAsAMessage) {
  const auto other = dead_letter_message("item-8-0", kJsonType, R"({"id":"item-7-0","kind":"KIND_ITEM","job":"demo"})", keys, clock.now());
  EXPECT_EQ(read_letter(delivered(other), keys, clock.now()).kind, "message");
}

TEST_F(LetterTest, ReadsWhatRabbitmqDeadLetteredItself) {
  const auto letter = read_letter(tick_delivery(), keys, clock.now());
  EXPECT_EQ(letter.kind, "tick");
  EXPECT_EQ(letter.job, "demo");
  EXPECT_EQ(letter.reason, "delivery_limit");
  EXPECT_NE(letter.x_death->find("takt.ticks.default"), std::string::npos);
}

// Found by fuzzing: either would have ended the archive again and again.
TEST_F(LetterTest, KeepsAMessageWhoseHeadersAreNoText) {
  auto delivery = tick_delivery();
  delivery.headers["x-made-up"] = "\xff\xfe";
  delivery.headers["x-death"] = {{{"reason", 5}, {"queue", nullptr}, {"by", "\x9d"}}};
  const auto letter = read_letter(delivery, keys, clock.now());
  EXPECT_EQ(letter.reason, "unknown");
  EXPECT_NE(letter.headers->find("x-made-up"), std::string::npos);
  EXPECT_TRUE(letter.x_death);
}

TEST_F(LetterTest, GivesTheSameIdToARedelivery) {
  EXPECT_EQ(read_letter(tick_delivery(), keys, clock.now()).id, read_letter(tick_delivery(), keys, clock.now()).id);
  amqp::Delivery anything;
  anything.body = "\x00\xff garbage";
  EXPECT_EQ(read_letter(anything, keys, clock.now()).id, read_letter(anything, keys, clock.now()).id);
  EXPECT_EQ(read_letter(anything, keys, clock.now()).kind, "message");
}

TEST_F(LetterTest, C18_Finding24_AGenuineLetterThatCannotBeStoredAsOneIsKeptAsAMessage) {
  const auto read = [&](const std::function<void(v1::DeadLetter&)>& spoil) {
    v1::DeadLetter letter;
    letter.set_id("item-7-0");
    letter.set_kind(v1::DeadLetter::KIND_ITEM);
    letter.set_job("demo");
    letter.set_item_id(7);
    letter.set_payload_json(R"({"account":1234567890123456789})");
    spoil(letter);
    return read_letter(delivered(dead_letter_message(letter.id(), kProtobufType, letter.SerializeAsString(), keys, clock.now())), keys,
                       clock.now());
  };
  const auto sound = read([](v1::DeadLetter&) {});
  EXPECT_EQ(sound.kind, "item");
  EXPECT_EQ(sound.payload, R"({"account":1234567890123456789})") << "finding 4: to the last digit";
  EXPECT_EQ(read([](v1::DeadLetter& letter) { letter.set_priority(100000); }).kind, "message");
  EXPECT_EQ(read([](v1::DeadLetter& letter) { letter.set_id("item-" + std::string(3000, '7')); }).kind, "message");
  EXPECT_EQ(read([](v1::DeadLetter& letter) { letter.mutable_died_at()->set_seconds(1LL << 60); }).kind, "message");
  EXPECT_EQ(read([](v1::DeadLetter& letter) { letter.set_error(std::string("a\0b", 3)); }).kind, "message");
  const auto refused = read([](v1::DeadLetter& letter) { letter.set_item_id(-1); });
  EXPECT_EQ(refused.kind, "message");
  EXPECT_TRUE(refused.genuine);
  EXPECT_NE(refused.error.find("it names no item"), std::string::npos);
  for (const std::string payload : {"", "{}x", "[\"\\u0000\"]", "\"\xff\"", "[1"}) {
    EXPECT_EQ(read([&](v1::DeadLetter& letter) { letter.set_payload_json(payload); }).kind, payload.empty() ? "item" : "message")
        << payload;
  }
  const std::string deep = std::string(500, '[') + "1e400" + std::string(500, ']');
  EXPECT_EQ(read([&](v1::DeadLetter& letter) { letter.set_payload_json(deep); }).payload, deep) << "what enqueue takes";
}

// Replayed, it would go into the outbox as a tick that cannot be sent.
TEST_F(LetterTest, C18_AGenuineTickBeyondItsLimitsIsKeptAsAMessage) {
  for (const bool sound : {true, false}) {
    v1::JobTick tick;
    tick.set_id("x");
    tick.set_job("demo");
    tick.add_items()->set_payload_json(std::string(sound ? 100 : 101, '[') + std::string(sound ? 100 : 101, ']'));
    v1::DeadLetter inside;
    inside.set_id("tick-x");
    inside.set_kind(v1::DeadLetter::KIND_TICK);
    inside.set_job("demo");
    *inside.mutable_tick() = tick;
    const auto as_letter = dead_letter_message("tick-x", kProtobufType, inside.SerializeAsString(), keys, clock.now());
    EXPECT_EQ(read_letter(delivered(as_letter), keys, clock.now()).kind, sound ? "tick" : "message");
    const auto as_tick = signed_message("takt.dlx", "", "x", kProtobufType, tick.SerializeAsString(), keys.ticks(), clock.now());
    const auto letter = read_letter(delivered(as_tick), keys, clock.now());
    EXPECT_EQ(letter.kind, sound ? "tick" : "message");
    EXPECT_EQ(letter.error.find("it is Takt's, but it is beyond a tick's limits") == std::string::npos, sound) << letter.error;
  }
}

}  // namespace
}  // namespace takt
