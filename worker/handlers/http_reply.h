#pragma once
#include "core/http/client.h"
#include "worker/item.h"

namespace takt {

/// The class of an HTTP answer (design: results of the http handler). Pure. `keep_body`: the first 500 bytes of an
/// error's body go into the error text.
HandlerResult judge_reply(const HttpResponse& response, const std::string& method, Timestamp now, bool keep_body);

/// Retry-After: seconds or an HTTP date (RFC 9110, 10.2.3); nullopt if it is neither. Never negative.
std::optional<Duration> parse_retry_after(std::string_view text, Timestamp now);

}  // namespace takt
