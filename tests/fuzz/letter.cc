// What comes from takt.dead: content-type NUL headers' id NUL timestamp NUL signature NUL x-death (JSON) NUL body. Unsigned, so
// never more than a message.
#include "dlq/letter.h"
#include "core/text.h"
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
  require(!letter.id.empty() && is_utf8(letter.id) && is_utf8(letter.job) && is_utf8(letter.reason) && is_utf8(letter.error));
  require(!letter.key || is_utf8(*letter.key));
  for (const auto& json : {letter.payload, letter.headers, letter.x_death})
    require(!json || (is_utf8(*json) && nlohmann::json::accept(*json)));
  if (as_letter && letter.kind != "message") require(letter.id == delivery.header("webhook-id"));
  require(!letter.headers || !nlohmann::json::parse(*letter.headers).contains("webhook-signature"));
  return 0;
}
