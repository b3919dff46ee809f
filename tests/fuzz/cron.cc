// Schedule expressions: zone NUL expression. A slot lies after the time asked about, and each after the one before; on a whole second,
// unless it is that of an @at.
#include <string>

#include "core/text/text.h"
#include "core/time/cron.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  Pieces pieces(data, size);
  const std::string zone(pieces.next());
  const auto expression = pieces.rest();
  const auto parsed = Cron::parse(expression, zone.empty() ? "Europe/Berlin" : zone);
  if (const auto* error = std::get_if<CronError>(&parsed)) {
    require(!error->message.empty() && error->position <= expression.size());
    return 0;
  }
  const bool one_off = to_lower(expression).find("@at") != std::string::npos;
  auto at = *parse_rfc3339("2026-03-29T00:59:59Z");
  for (int i = 0; i < 3; ++i) {
    const auto next = std::get<Cron>(parsed).next(at);
    if (!next) break;
    require(*next > at && (one_off || to_unix_us(*next) % 1'000'000 == 0));
    at = *next;
  }
  return 0;
}
