#include "core/tick/tick.h"

#include "core/text/exact_json.h"

#include <gtest/gtest.h>

#include "core/tick/tick_message.h"
#include "tests/support/clock.h"
#include "worker/claim.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

/// A genuine message that each test then spoils in one way.
struct Envelope {
  FakeClock clock;
  KeyRing keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  std::string id = "manual:demo:1", type{kProtobufType}, timestamp, signature, body;
  std::optional<std::size_t> announced;

  Envelope() {
    v1::JobTick tick;
    tick.set_id(id);
    tick.set_job("demo");
    seal(tick.SerializeAsString());
  }
  void seal(std::string content, Duration age = 0ms) {
    body = std::move(content);
    const auto unix_s = std::chrono::floor<std::chrono::seconds>(clock.now() - age).time_since_epoch().count();
    timestamp = std::to_string(unix_s);
    signature = keys.ticks().sign(id, unix_s, body);
  }
  void seal_tick(const v1::JobTick& tick) { seal(tick.SerializeAsString()); }
  std::string verdict(bool with_id = true, bool with_time = true, bool with_signature = true) const {
    const TickMessage message{body,
                              announced.value_or(body.size()),
                              type,
                              with_id ? std::optional<std::string_view>(id) : std::nullopt,
                              with_time ? std::optional<std::string_view>(timestamp) : std::nullopt,
                              with_signature ? std::optional<std::string_view>(signature) : std::nullopt};
    const auto result = verify_tick(message, keys, clock.now(), 24h);
    if (const auto* reason = std::get_if<RejectReason>(&result)) return std::string(to_string(*reason));
    return "accepted";
  }
};

TEST(VerifyTick, AcceptsProtobufAndCanonicalJson) {
  Envelope envelope;
  EXPECT_EQ(envelope.verdict(), "accepted");
  envelope.type = "application/json; charset=utf-8";
  envelope.seal(R"({"id":"manual:demo:1","job":"demo","dueAt":"2026-11-21T10:00:00Z","items":[{"payload":{"n":1},"key":"k"}]})");
  EXPECT_EQ(envelope.verdict(), "accepted");
}

TEST(VerifyTick, RefusesAPayloadThatPostgresqlCannotHold) {
  Envelope envelope;
  envelope.type = kJsonType;
  for (const std::string payload : {R"("\u0000")", R"({"\u0000":1})", R"([1,[{"a":"x\u0000"}]])"}) {
    envelope.seal(R"({"id":"manual:demo:1","job":"demo","items":[{"payload":)" + payload + "}]}");
    EXPECT_EQ(envelope.verdict(), "field_limit") << payload;
  }
}

TEST(VerifyTick, NamesTheReasonOfEachRefusal) {
  Envelope envelope;
  EXPECT_EQ(envelope.verdict(false), "missing_header");
  EXPECT_EQ(envelope.verdict(true, false), "missing_header");
  EXPECT_EQ(envelope.verdict(true, true, false), "missing_header");

  Envelope oversized;
  oversized.announced = kMaxTickBytes + 1;
  EXPECT_EQ(oversized.verdict(), "oversized");

  Envelope forged;
  forged.keys = KeyRing::parse(generate_signing_secret().reveal(), "other");
  EXPECT_EQ(forged.verdict(), "bad_signature");

  Envelope flipped;
  flipped.body[3] = static_cast<char>(flipped.body[3] ^ 1);
  EXPECT_EQ(flipped.verdict(), "bad_signature");

  Envelope truncated;
  truncated.body.pop_back();
  EXPECT_EQ(truncated.verdict(), "bad_signature");

  Envelope garbled;
  garbled.timestamp = "soon";
  EXPECT_EQ(garbled.verdict(), "malformed_timestamp");

  Envelope garbage;
  garbage.seal("\xff\xff\xff");
  EXPECT_EQ(garbage.verdict(), "malformed_body");
  garbage.type = kJsonType;
  garbage.seal(R"({"id":"manual:demo:1","job":"demo","surprise":1})");
  EXPECT_EQ(garbage.verdict(), "malformed_body") << "unknown fields are refused";

  Envelope typed;
  typed.type = "text/plain";
  EXPECT_EQ(typed.verdict(), "bad_content_type");

  Envelope other_id;
  v1::JobTick tick;
  tick.set_id("another");
  tick.set_job("demo");
  other_id.seal_tick(tick);
  EXPECT_EQ(other_id.verdict(), "id_mismatch");
}

TEST(VerifyTick, JudgesAgeAtBothEnds) {
  Envelope envelope;
  const std::string body = envelope.body;
  envelope.seal(body, 24h);
  EXPECT_EQ(envelope.verdict(), "accepted");
  envelope.seal(body, 24h + 1s);
  EXPECT_EQ(envelope.verdict(), "stale");
  envelope.seal(body, -5min);
  EXPECT_EQ(envelope.verdict(), "accepted");
  envelope.seal(body, -5min - 1s);
  EXPECT_EQ(envelope.verdict(), "future_dated");
}

TEST(VerifyTick, BoundsEveryField) {
  const auto spoiled = [](const std::function<void(v1::JobTick&)>& spoil) {
    Envelope envelope;
    v1::JobTick tick;
    tick.set_id(envelope.id);
    tick.set_job("demo");
    spoil(tick);
    envelope.seal_tick(tick);
    return envelope.verdict();
  };
  EXPECT_EQ(spoiled([](auto& tick) { tick.set_job("Not A Name"); }), "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.set_job(""); }), "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.mutable_due_at()->set_seconds(-1); }), "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.add_items()->set_priority(101); }), "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.add_items()->set_key(std::string(513, 'k')); }), "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.add_items()->mutable_payload()->set_string_value(std::string(kMaxPayloadBytes, 'p')); }),
            "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) {
              for (int i = 0; i <= kMaxTickItems; ++i) tick.add_items();
            }),
            "field_limit");
  EXPECT_EQ(spoiled([](auto& tick) { tick.set_batch_size(0xFFFFFFFFU); }), "accepted") << "capped later, by the job's own";
}

// The payload is chosen by whoever may enqueue, and ids come from a sequence: an item whose payload is a tick of its own id.
TEST(VerifyTick, Finding6_RefusesAWebhookWhosePayloadIsATick) {
  Envelope envelope;
  envelope.type = kJsonType;
  envelope.id = "item-7";
  envelope.seal(R"({"id":"item-7","job":"payments.refund","items":[{"payload":{"evil":true}}]})");
  EXPECT_EQ(envelope.verdict(), "accepted") << "signed as a tick it is one";
  const auto unix_s = std::stoll(envelope.timestamp);
  envelope.signature = envelope.keys.webhooks("demo")->sign_also_retired(envelope.id, unix_s, envelope.body, envelope.clock.now());
  EXPECT_EQ(envelope.verdict(), "bad_signature");
  envelope.signature = envelope.keys.letters().sign(envelope.id, unix_s, envelope.body);
  EXPECT_EQ(envelope.verdict(), "bad_signature") << "nor is a letter's signature a tick's";
}

TEST(TickMessage, IsVerifiedByItsOwnKeys) {
  FakeClock clock;
  const auto keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  const TickRow row{
      "demo/daily@2026-11-21T10:00:00Z", "demo", "default", "schedule", clock.now(), R"([{"payload":{"a":[1,null,"x"]},"key":"k"}])"};
  const auto message = *tick_message(row, keys, clock.now());
  const TickMessage received{message.body,
                             message.body.size(),
                             message.content_type,
                             message.headers.at("webhook-id"),
                             message.headers.at("webhook-timestamp"),
                             message.headers.at("webhook-signature")};
  const auto verified = verify_tick(received, keys, clock.now(), 24h);
  ASSERT_TRUE(std::holds_alternative<v1::JobTick>(verified));
  const auto& tick = std::get<v1::JobTick>(verified);
  EXPECT_EQ(get_timestamp(tick.due_at()), clock.now());
  ASSERT_EQ(tick.items_size(), 1);
  EXPECT_EQ(payload_text(tick.items(0)), R"({"a":[1,null,"x"]})");
}

TEST(ExactJson, Finding4_KeepsEveryDigitKeyAndTextAsItStands) {
  for (const std::string text :
       {R"({"account":1234567890123456789,"n":-123456789012345678901234567890.123456789})", R"([1.10,1e5,-0,-0.0,1E+2])",
        R"({"a":1,"a":2,"":{}})", R"("\\u0000 \" \u0001 \/ ä 😀 \u00e4 \ud83d\ude00")", "[]", "7", "[1e400]", "null"}) {
    const auto exact = exact_json(text, 1000);
    ASSERT_TRUE(std::holds_alternative<std::string>(exact)) << text;
    EXPECT_EQ(std::get<std::string>(exact), text);
  }
  const auto fault = [](const std::string& text) { return std::get<JsonFault>(exact_json(text, 1000)); };
  EXPECT_EQ(fault(R"(["a\u0000"])"), JsonFault::limit);
  EXPECT_EQ(fault("[1e999,1]"), JsonFault::limit) << "printed, it is longer than allowed";
  EXPECT_EQ(fault("[1e-99999999999999999999]"), JsonFault::limit);
  EXPECT_EQ(fault("[1e-5000]"), JsonFault::limit);
  EXPECT_EQ(fault(std::string(101, '[') + std::string(101, ']')), JsonFault::limit);
  EXPECT_EQ(fault("[1e300,1e300,1e300,1e300]"), JsonFault::limit) << "printed, they are longer than allowed";
  EXPECT_EQ(fault("\"" + std::string(999, 'a') + "\""), JsonFault::limit);
  const std::string escaped = R"(["\u00e4\u00e4\u00e4","\ud83d\ude00"])";  // printed as ["äää", "😀"]
  EXPECT_TRUE(std::holds_alternative<std::string>(exact_json(escaped, 18))) << "as PostgreSQL prints it";
  EXPECT_EQ(std::get<JsonFault>(exact_json(escaped, 17)), JsonFault::limit);
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "]",
                                 "[1,]",
                                 "[,1]",
                                 "[1 2]",
                                 "{\"a\":1,}",
                                 "{\"a\"}",
                                 "{1:2}",
                                 "[}",
                                 "nul",
                                 "truex",
                                 "[1] 2",
                                 "01",
                                 "-",
                                 "1.",
                                 ".5",
                                 "1e",
                                 "+1",
                                 "'a'",
                                 "\"a",
                                 "\"\t\"",
                                 R"("\x")",
                                 R"("\u12g4")",
                                 R"("\u-123")",
                                 R"("\ud800")",
                                 R"("\ud800\u0041")",
                                 R"("\udc00")",
                                 "\"\xff\"",
                                 "\"\xed\xa0\x80\"",
                                 "\xef\xbb\xbf[]"})
    EXPECT_EQ(fault(text), JsonFault::malformed) << text;
}

TEST(ExactJson, SaysAtWhichByteJsonbCannotHoldAText) {
  const auto refusal = [](const std::string& text) {
    const auto found = json_refusal(text);
    return !found ? std::string("-") : (found->fault == JsonFault::limit ? "NUL " : "malformed ") + std::to_string(found->at);
  };
  EXPECT_EQ(refusal(R"({"a": ["\\u0000", 1e99999]})"), "-") << "numbers are PostgreSQL's to judge";
  EXPECT_EQ(refusal(std::string(100'000, '[') + std::string(100'000, ']')), "-") << "and so is depth";
  EXPECT_EQ(refusal(R"({"a": "b\u0000"})"), "NUL 8");
  EXPECT_EQ(refusal(R"({"a\u0000": 1})"), "NUL 3");
  EXPECT_EQ(refusal(R"({"a": tru})"), "malformed 6");
  EXPECT_EQ(refusal("[1, 2"), "malformed 5");
}

TEST(ExactJson, Finding4_ATicksPayloadsAreCarriedAsBytesAndTheRestAsItIs) {
  const auto read = tick_from_json(R"({"id":"x","job":"demo","batchSize":3,"items":[{"key":"k","payload":{"payload":1234567890123456789}},
    {"payload":[0.1000000000000000055511151231257827]},{"key":"payload"},{"payload":null}]})");
  ASSERT_TRUE(std::holds_alternative<v1::JobTick>(read));
  const auto& tick = std::get<v1::JobTick>(read);
  ASSERT_EQ(tick.items_size(), 4);
  EXPECT_EQ(payload_text(tick.items(0)), R"({"payload":1234567890123456789})");
  EXPECT_EQ(payload_text(tick.items(1)), "[0.1000000000000000055511151231257827]");
  EXPECT_EQ(payload_text(tick.items(2)), "{}");
  EXPECT_EQ(payload_text(tick.items(3)), "null");
  EXPECT_EQ(tick.items(2).key(), "payload");
  EXPECT_NE(tick_to_json(tick).find(R"("items":[{"payload":{"payload":1234567890123456789},"key":"k"})"), std::string::npos)
      << tick_to_json(tick);
  EXPECT_EQ(std::get<RejectReason>(tick_from_json(R"({"id":"x","surprise":1})")), RejectReason::malformed_body);
  EXPECT_EQ(std::get<RejectReason>(tick_from_json(R"({"items":[{"payload":"\u0000"}]})")), RejectReason::field_limit);
  const auto spelt = tick_from_json(R"({"id":"x","\u0069tems":[{"p\u0061yload":1234567890123456789}]})");
  EXPECT_EQ(payload_text(std::get<v1::JobTick>(spelt).items(0)), "1234567890123456789") << "whatever its name is written like";
}

TEST(TickSource, IsReadFromTheReservedPrefixes) {
  EXPECT_EQ(tick_source("due:1"), "due");
  EXPECT_EQ(tick_source("manual:demo:1"), "manual");
  EXPECT_EQ(tick_source("demo/daily@2026-11-21T10:00:00Z"), "external");
}

}  // namespace
}  // namespace takt
