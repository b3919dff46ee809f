#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/http/outbound_policy.h"
#include "core/time/time.h"

namespace takt {

/// Headers of a request, in one text: "Name: value" each, with a NUL behind it. Neither holds a line's end or a NUL; who adds
/// them sees to that.
class HttpHeaders {
 public:
  HttpHeaders() = default;
  HttpHeaders(std::initializer_list<std::pair<std::string_view, std::string_view>> headers) {
    for (const auto& [name, value] : headers) add(name, value);
  }
  void reserve(std::size_t bytes) { text_.reserve(bytes); }
  void add(std::string_view name, std::string_view value);
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::string& text() { return text_; }

 private:
  std::string text_;
  std::size_t count_ = 0;
};

struct HttpRequest {
  std::string method;
  std::string url;
  HttpHeaders headers;
  std::string body;  ///< not sent with GET and HEAD
  Duration timeout = std::chrono::seconds(30);
  Duration connect_timeout = std::chrono::seconds(5);
  std::size_t max_response = 64 * 1024;  ///< a longer body ends the request with HttpFault::too_large
  std::string ca_file;
};

/// Why there is no usable response.
enum class HttpFault { none, cancelled, timeout, resolve, connect, tls, too_large, protocol, refused, exhausted };
std::string_view to_string(HttpFault fault);

struct HttpResponse {
  HttpFault fault = HttpFault::none;
  std::string error;  ///< the fault in words
  int status = 0;
  std::string body;  ///< at most max_response bytes
  std::string content_type;
  std::string retry_after;
  bool non_retryable = false;  ///< Upstash-NonRetryable-Error: true
  double seconds = 0;
};

/// Outbound HTTP: libcurl's multi interface on libuv loops, each driven by a thread of this object and with connections of its
/// own. Requests are spread over the loops; a request that is started in another's callback goes on in that one's loop.
/// Keep-alive, HTTP/2 where a TLS server offers it, certificates and names verified, redirects not followed, no proxy.
/// Memory: at most the requests started and not yet done, each with its body and max_response bytes; header lines of a
/// response are read up to 64 KiB in all.
/// start() and cancel() may be called from any thread; `done` runs on a loop's thread, several of them at once on several, and
/// must not block.
/// The destructor cancels what is in flight.
class HttpClient {
 public:
  struct Settings {
    int host_connections = 50;      ///< to one host at most; further requests wait, and the wait is part of their timeout
    int idle_connections = 200;     ///< kept open for reuse
    OutboundPolicy outbound{};      ///< judges the URL, and the very address that is connected to; no second lookup
    int reserved_descriptors = 16;  ///< of the process's limit left to everything else; see connections()
    int threads = 1;                ///< loops, each with its part of the connections; fewer where these are few
  };
  using Done = std::function<void(HttpResponse&&)>;

  explicit HttpClient(Settings settings);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  std::uint64_t start(HttpRequest request, Done done);
  /// Ends the request with HttpFault::cancelled unless it is done already.
  void cancel(std::uint64_t id);
  /// Connections to all hosts together at most: what the process's limit of file descriptors (RLIMIT_NOFILE) left when
  /// this object was made, without the reserved ones, and at least one. Requests over it wait as those over
  /// host_connections do.
  [[nodiscard]] int connections() const;

 private:
  class Loops;
  std::unique_ptr<Loops> loops_;
};

}  // namespace takt
