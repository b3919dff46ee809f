#include "worker/handlers/http_reply.h"

#include <curl/curl.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMaxErrorBytes = 1024;
constexpr std::size_t kKeptBodyBytes = 500;
constexpr std::int64_t kMaxRetryAfterSeconds = 366LL * 86400;

HandlerResult result_of(ItemClass item_class, std::string reason, const std::string& error) {
  HandlerResult result;
  result.item_class = item_class;
  result.reason = std::move(reason);
  result.error = printable(error, kMaxErrorBytes);
  return result;
}

std::int64_t count_in(const nlohmann::json& body, const char* key) {
  const auto found = body.find(key);
  if (found == body.end() || !found->is_number_integer()) return 0;
  return std::clamp<std::int64_t>(found->get<std::int64_t>(), 0, 1'000'000'000'000);
}

/// A 2xx answer is done, unless its JSON body says otherwise. A body that is not such JSON says nothing.
HandlerResult judge_success(const HttpResponse& response) {
  HandlerResult result = result_of(ItemClass::done, "", "");
  if (response.body.empty() || !to_lower(response.content_type).starts_with("application/json")) return result;
  const auto body = nlohmann::json::parse(response.body, nullptr, false);
  if (!body.is_object()) return result;
  result.processed = count_in(body, "processed");
  result.failed = count_in(body, "failed");
  result.skipped = count_in(body, "skipped");
  if (body.contains("queueDepth")) result.queue_depth = count_in(body, "queueDepth");
  const auto said = body.find("result");
  if (said == body.end() || !said->is_string()) return result;
  const auto word = said->get<std::string>();
  if (word == "noop") result.item_class = ItemClass::noop;
  if (word == "skipped") result.item_class = ItemClass::skipped;
  if (word == "blocked") result.item_class = ItemClass::blocked;
  if (word == "error") result.item_class = ItemClass::error;
  if (result.item_class == ItemClass::error || result.item_class == ItemClass::blocked) {
    result.reason = "endpoint_" + word;
    const auto error = body.find("error");
    result.error = error != body.end() && error->is_string() ? printable(error->get<std::string>(), kMaxErrorBytes)
                                                             : "the endpoint answered result: " + word;
  }
  if (const auto after = body.find("retryAfter"); after != body.end()) {
    if (after->is_string()) result.retry_after = parse_duration(after->get<std::string>());
    if (after->is_number_integer())
      result.retry_after = std::chrono::seconds(std::clamp<std::int64_t>(after->get<std::int64_t>(), 0, kMaxRetryAfterSeconds));
  }
  return result;
}

}  // namespace

std::optional<Duration> parse_retry_after(std::string_view text, Timestamp now) {
  text = trim(text);
  if (text.empty()) return std::nullopt;
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (end == text.data() + text.size() && error != std::errc::invalid_argument) {
    if (error == std::errc::result_out_of_range) seconds = kMaxRetryAfterSeconds;
    if (seconds < 0) return std::nullopt;
    return std::chrono::seconds(std::min(seconds, kMaxRetryAfterSeconds));
  }
  const time_t when = curl_getdate(std::string(text).c_str(), nullptr);
  if (when < 0) return std::nullopt;
  const auto wait = std::chrono::ceil<Duration>(Timestamp(std::chrono::seconds(when)) - now);
  return std::clamp<Duration>(wait, Duration(0), std::chrono::seconds(kMaxRetryAfterSeconds));
}

HandlerResult judge_reply(const HttpResponse& response, const std::string& method, Timestamp now, bool keep_body) {
  HandlerResult result;
  if (response.fault == HttpFault::cancelled) {
    result = result_of(ItemClass::interrupted, "shutdown", "the worker was stopped while the request was under way");
  } else if (response.fault == HttpFault::refused) {
    result = result_of(ItemClass::blocked, std::string(to_string(response.fault)), response.error);
  } else if (response.fault == HttpFault::exhausted) {
    result = result_of(ItemClass::skipped, std::string(to_string(response.fault)), response.error);  // no attempt of the item's
    result.retry_after = std::chrono::seconds(1);
  } else if (response.fault != HttpFault::none) {
    result = result_of(ItemClass::error, std::string(to_string(response.fault)), response.error);
  } else if (response.status >= 200 && response.status < 300) {
    result = judge_success(response);
  } else {
    const std::string code = std::to_string(response.status);
    std::string words = "the endpoint answered " + code;
    if (keep_body && !response.body.empty()) words += ": " + printable(response.body, kKeptBodyBytes);
    if (response.status == 405) {
      result = result_of(ItemClass::blocked, "http_405", "this endpoint does not accept " + method);
    } else if (response.status == 489 && response.non_retryable) {
      result = result_of(ItemClass::fatal, "http_489", words);
    } else if (response.status >= 300 && response.status < 400) {
      result = result_of(ItemClass::error, "http_" + code, "the endpoint redirects (" + code + "); redirects are not followed");
    } else {
      result = result_of(ItemClass::error, "http_" + code, words);
      if (response.status == 429 || response.status == 503) result.retry_after = parse_retry_after(response.retry_after, now);
    }
  }
  result.seconds = response.seconds;
  return result;
}

}  // namespace takt
