// Decoding of ticks that are genuine, or seem so: the input is signed first. id NUL content-type NUL body.
#include "core/tick.h"
#include "core/signing.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  static const auto kKeys = KeyRing::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "fuzz");
  static const auto kNow = *parse_rfc3339("2026-11-21T10:00:00Z");
  const auto seconds = std::to_string(to_unix_us(kNow) / 1'000'000);
  Pieces pieces(data, size);
  const std::string id(pieces.next());
  const auto type = pieces.next() == "json" ? kJsonType : kProtobufType;
  const auto body = pieces.rest();
  const auto signature = kKeys.ticks().sign(id, to_unix_us(kNow) / 1'000'000, body);
  const auto verdict = verify_tick({body, body.size(), type, id, seconds, signature}, kKeys, kNow, std::chrono::hours(24));
  if (const auto* tick = std::get_if<v1::JobTick>(&verdict)) {
    require(tick->id() == id);
    require(is_name(tick->job()));
    require(tick->items_size() <= kMaxTickItems);
    // What was understood is understood again from its own JSON.
    v1::JobTick again;
    require(message_from_json(message_to_json(*tick), again) && again.id() == tick->id() && again.items_size() == tick->items_size());
  } else {
    require(std::get<RejectReason>(verdict) != RejectReason::bad_signature);
  }
  // With any other signature nothing is even decoded.
  const auto forged = verify_tick({body, body.size(), type, id, seconds, "v1,AAAA"}, kKeys, kNow, std::chrono::hours(24));
  require(std::holds_alternative<RejectReason>(forged));
  return 0;
}
