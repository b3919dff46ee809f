// Headers of a message nobody vouches for: id NUL timestamp NUL signatures NUL body. None can be right.
#include "core/tick/signing.h"
#include "core/tick/tick.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  static const auto kKeys = KeyRing::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "fuzz");
  static const auto kNow = *parse_rfc3339("2026-11-21T10:00:00Z");
  Pieces pieces(data, size);
  const auto id = pieces.next(), timestamp = pieces.next(), signatures = pieces.next(), body = pieces.rest();
  require(!kKeys.ticks().verify(id, timestamp, body, signatures, kNow));
  const auto verdict = verify_tick({body, body.size(), kJsonType, id, timestamp, signatures}, kKeys, kNow, std::chrono::hours(24));
  require(std::holds_alternative<RejectReason>(verdict));
  return 0;
}
