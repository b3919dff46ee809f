#pragma once
#include <curl/curl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/http/client.h"
#include "core/time/time.h"

namespace takt {

class HttpLoop;

struct UrlCleanup {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
/// A URL that libcurl need not take apart again for each request.
using ParsedUrl = std::unique_ptr<CURLU, UrlCleanup>;

/// One request on its way, and what libcurl is told of it. Touched by one thread at a time: who started it, then the loop
/// that it was given to.
struct Transfer {
  std::uint64_t id = 0;
  HttpLoop* loop = nullptr;  ///< that it goes through; null while it waits for a place
  HttpRequest request;
  HttpClient::Done done;
  HttpResponse response;
  std::string host;  ///< scheme://host:port, as admission counts them
  CURL* easy = nullptr;
  ParsedUrl parsed;                     ///< `easy` has its URL from here
  std::vector<curl_slist> header_list;  ///< into the request's headers
  std::size_t header_bytes = 0;
  bool too_large = false;
  bool by_name = false;    ///< the outbound policy allows its host by name
  bool refused = false;    ///< an address it would have gone to
  bool exhausted = false;  ///< no descriptor was left for its connection
  bool given_up = false;   ///< cancelled while it waited for a place: it has none
  SteadyTime asked, started;
  char error[CURL_ERROR_SIZE] = {};

  /// Sets `easy` up with what requests to one place have in common.
  void set_up();
  /// And with what is this request's own.
  void configure();
  /// libcurl is done: why there is no usable response, and the same in words.
  [[nodiscard]] HttpFault fault(CURLcode code) const;
  [[nodiscard]] std::string words(HttpFault fault, CURLcode code) const;

 private:
  void write_headers();
};

/// The process or the system may open nothing more.
bool means_exhausted(int error);

}  // namespace takt
