#include "core/http/url.h"

#include <curl/curl.h>

#include <memory>

#include "core/text/text.h"

namespace takt {

std::optional<Url> parse_url(const std::string& text) {
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> url(curl_url(), curl_url_cleanup);
  if (!url || curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) return std::nullopt;
  const auto part = [&](CURLUPart which) {
    char* value = nullptr;
    std::string result;
    if (curl_url_get(url.get(), which, &value, CURLU_DEFAULT_PORT) == CURLUE_OK) result = value;
    curl_free(value);
    return result;
  };
  return Url{to_lower(part(CURLUPART_SCHEME)), to_lower(part(CURLUPART_HOST)), part(CURLUPART_PORT),
             !part(CURLUPART_USER).empty() || !part(CURLUPART_PASSWORD).empty()};
}

}  // namespace takt
