// Decoding of ticks that are genuine, or seem so: the input is signed first. id NUL content-type NUL body. Of one that is taken,
// every inline item can be stored: what a caller may put into it is judged here, before PostgreSQL sees it; and its payload, as
// JSON text (payload_json) or as protobuf's value, stays what it was.
#include "core/tick/tick.h"

#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "core/tick/signing.h"
#include "tests/fuzz/input.h"

namespace {

constexpr std::int64_t kYear10000 = 253'402'300'800;

void require_storable(const takt::v1::NewItem& item) {
  require(item.key().size() <= takt::kMaxKeyCharacters && takt::is_utf8(item.key()) && item.key().find('\0') == std::string::npos);
  require(item.priority() >= -100 && item.priority() <= 100);
  if (item.has_run_at()) require(item.run_at().seconds() >= 0 && item.run_at().seconds() < kYear10000);
  // A payload is JSON to its last byte, of a size that PostgreSQL prints within the limit, and jsonb holds no U+0000.
  const auto payload = takt::payload_text(item).value();
  require(takt::is_utf8(payload) && !takt::json_refusal(payload));
  require(std::holds_alternative<std::string>(takt::exact_json(payload, takt::kMaxPayloadBytes)));
  for (auto at = payload.find("\\u0000"); at != std::string::npos; at = payload.find("\\u0000", at + 1)) {
    const auto before = payload.find_last_not_of('\\', at == 0 ? 0 : at - 1);
    require((at - (before == std::string::npos ? 0 : before + 1)) % 2 == 1);  // a backslash and "u0000" as ordinary text
  }
}

}  // namespace

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
    require(tick->has_due_at() && tick->due_at().seconds() >= 0 && tick->due_at().seconds() < kYear10000);
    for (const auto& item : tick->items()) require_storable(item);
    // What was understood is understood again from its own JSON.
    v1::JobTick again;
    require(message_from_json(message_to_json(*tick), again) && again.id() == tick->id() && again.items_size() == tick->items_size() &&
            again.dry_run() == tick->dry_run());
    // And its payloads are the same bytes on the way through a replay, but for white space.
    const auto replayed = tick_from_json(tick_to_json(*tick));
    for (int i = 0; i < tick->items_size(); ++i) {
      const auto payload = exact_json(payload_text(tick->items(i)).value(), kMaxPayloadBytes);
      require(std::get<v1::JobTick>(replayed).items(i).payload_json() == std::get<std::string>(payload));
    }
  } else {
    require(std::get<RejectReason>(verdict) != RejectReason::bad_signature);
  }
  // With any other signature nothing is even decoded.
  const auto forged = verify_tick({body, body.size(), type, id, seconds, "v1,AAAA"}, kKeys, kNow, std::chrono::hours(24));
  require(std::holds_alternative<RejectReason>(forged));
  return 0;
}
