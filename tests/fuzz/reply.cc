// A destination's answer: status NUL content-type NUL retry-after NUL body.
#include <charconv>

#include "core/text/text.h"
#include "tests/fuzz/input.h"
#include "worker/handlers/http_reply.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  static const auto kNow = *parse_rfc3339("2026-11-21T10:00:00Z");
  Pieces pieces(data, size);
  HttpResponse response;
  const auto status = pieces.next();
  std::from_chars(status.data(), status.data() + status.size(), response.status);
  response.content_type = pieces.next();
  response.retry_after = pieces.next();
  response.body = pieces.rest();
  const auto result = judge_reply(response, "POST", kNow, true);
  require(result.error.size() <= 1024);
  require(result.processed >= 0 && result.failed >= 0 && result.skipped >= 0);
  if (result.retry_after) require(*result.retry_after >= Duration(0) && *result.retry_after <= std::chrono::hours(367 * 24));
  if (response.status < 200 || response.status >= 300)
    require(result.item_class != ItemClass::done && result.item_class != ItemClass::noop);
  return 0;
}
