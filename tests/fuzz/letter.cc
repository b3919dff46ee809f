// What comes from takt.dead: content-type NUL headers' id NUL timestamp NUL signature NUL x-death (JSON) NUL body. Unsigned, so
// never more than a message.
#include "dlq/letter.h"

#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  static const auto kKeys = KeyRing::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "fuzz");
  static const auto kNow = *parse_rfc3339("2026-11-21T10:00:00Z");
  Pieces pieces(data, size);
  amqp::Delivery delivery;
  delivery.content_type = pieces.next();
  delivery.headers["webhook-id"] = std::string(pieces.next());
  delivery.headers["webhook-timestamp"] = std::string(pieces.next());
  const std::string signature(pieces.next());
  if (auto deaths = nlohmann::json::parse(pieces.next(), nullptr, false); !deaths.is_discarded())
    delivery.headers["x-death"] = std::move(deaths);
  delivery.body = pieces.rest();
  delivery.body_size = delivery.body.size();
  const auto sign = [&](const auto& key) {
    const auto seconds = to_unix_us(kNow) / 1'000'000;
    delivery.headers["webhook-timestamp"] = std::to_string(seconds);
    delivery.headers["webhook-signature"] = key.sign(delivery.header("webhook-id").value_or(""), seconds, delivery.body);
  };
  const bool as_letter = signature == "letter", as_tick = signature == "tick";
  if (as_letter)
    sign(kKeys.letters());
  else if (as_tick)
    sign(kKeys.ticks());
  else
    delivery.headers["webhook-signature"] = signature;
  const auto letter = read_letter(delivery, kKeys, kNow);
  require(letter.kind == "message" || as_letter || (as_tick && letter.kind == "tick"));
  // PostgreSQL can store it, whatever it holds: text without NUL, JSON without U+0000, numbers and times that its types have.
  const auto storable = [](const std::string& text) { return is_utf8(text) && text.find('\0') == std::string::npos; };
  require(!letter.id.empty() && letter.id.size() <= 700);
  for (const auto* text : {&letter.id, &letter.job, &letter.reason, &letter.error}) require(storable(*text));
  require(!letter.key || storable(*letter.key));
  require(letter.priority >= -100 && letter.priority <= 100 && letter.attempts >= 0);
  require(letter.died_at >= Timestamp{} && letter.died_at < Timestamp(std::chrono::seconds(253'402'300'800)));
  require(letter.kind != "item" || (letter.item_id && *letter.item_id > 0 && letter.payload));
  for (const auto& json : {letter.payload, letter.headers, letter.x_death}) require(!json || (storable(*json) && !json_refusal(*json)));
  if (as_letter && letter.kind != "message") require(letter.id == delivery.header("webhook-id"));
  require(!letter.headers || !nlohmann::json::parse(*letter.headers).contains("webhook-signature"));
  return 0;
}
