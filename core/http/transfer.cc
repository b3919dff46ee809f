#include "core/http/transfer.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/http/http_loop.h"
#include "core/text/text.h"

namespace takt {

namespace {

/// How long an address is remembered: a destination that moves is followed after that.
constexpr std::chrono::duration<long> kKeepNames = std::chrono::seconds(10);
constexpr std::size_t kMaxHeaderBytes = 64 * 1024;
/// What libcurl reads at a time, in bytes: it allocates this for each request anew, and answers are short. The least it takes.
constexpr long kReadBytes = 1024;
/// From this size on libcurl would ask the server before it sends a body, and wait a second for servers that do not know
/// of it (RFC 9110, section 10.1.1).
constexpr std::size_t kExpectsFrom = 1024 * 1024;

size_t on_body(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::size_t bytes = size * count;
  if (transfer.response.body.size() + bytes > transfer.request.max_response) {
    transfer.too_large = true;
    return 0;  // ends the transfer
  }
  transfer.response.body.append(data, bytes);
  return bytes;
}

size_t on_header(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::size_t bytes = size * count;
  transfer.header_bytes += bytes;
  if (transfer.header_bytes > kMaxHeaderBytes) {
    transfer.too_large = true;
    return 0;
  }
  const std::string_view line(data, bytes);
  const auto colon = line.find(':');
  if (colon == std::string_view::npos) return bytes;
  const auto is = [name = line.substr(0, colon)](std::string_view wanted) {
    return name.size() == wanted.size() && to_lower(name) == wanted;
  };
  const auto value = trim(line.substr(colon + 1));
  if (is("content-type")) transfer.response.content_type = value;
  if (is("retry-after")) transfer.response.retry_after = value;
  if (is("upstash-nonretryable-error")) transfer.response.non_retryable = to_lower(value) == "true";
  return bytes;
}

/// True if this process may open nothing more: then it is not the destination that failed.
bool out_of_descriptors() {
  const int descriptor = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return means_exhausted(errno);
  ::close(descriptor);
  return false;
}

}  // namespace

bool means_exhausted(int error) { return error == EMFILE || error == ENFILE; }

HttpFault Transfer::fault(CURLcode code) const {
  if (too_large) return HttpFault::too_large;
  if (refused && code != CURLE_OK) return HttpFault::refused;
  if (exhausted && code != CURLE_OK) return HttpFault::exhausted;
  // What failed inside libcurl does not say why. A descriptor may have become free since, hence the reserved ones.
  const bool inside = code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_OUT_OF_MEMORY || code == CURLE_SSL_CACERT_BADFILE;
  if (inside && out_of_descriptors()) return HttpFault::exhausted;
  switch (code) {
    case CURLE_OK: return HttpFault::none;
    case CURLE_OPERATION_TIMEDOUT: return HttpFault::timeout;
    case CURLE_COULDNT_RESOLVE_HOST: return HttpFault::resolve;
    case CURLE_COULDNT_CONNECT: return HttpFault::connect;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR: return HttpFault::tls;
    default: return HttpFault::protocol;
  }
}

std::string Transfer::words(HttpFault fault, CURLcode code) const {
  switch (fault) {
    case HttpFault::none: return "";
    case HttpFault::too_large:
      return header_bytes > kMaxHeaderBytes ? "response headers larger than 64 KiB"
                                            : "response body larger than " + std::to_string(request.max_response) + " bytes";
    case HttpFault::exhausted: return "this worker has no file descriptor left (ulimit -n); lower worker.host_connections or worker.runs";
    case HttpFault::refused: return "the outbound policy refuses the address that the host has";
    default: return printable(error[0] != '\0' ? error : curl_easy_strerror(code), 300);
  }
}

void Transfer::set_up() {
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, kReadBytes);
  // A lookup that is given up is left to its thread, which ends when the resolver does: else libcurl waits for it, and
  // with it this loop and every other request (20 s and more where a name server does not answer).
  curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
  curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, kKeepNames.count());
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, HttpLoop::open_socket);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, HttpLoop::close_socket);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, loop);
  parsed.reset(curl_url());
  if (parsed && curl_url_set(parsed.get(), CURLUPART_URL, request.url.c_str(), CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK)
    curl_easy_setopt(easy, CURLOPT_CURLU, parsed.get());
  else
    curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_PROXY, "");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_2TLS);
  curl_easy_setopt(easy, CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
  if (!request.ca_file.empty()) {
    curl_easy_setopt(easy, CURLOPT_CAINFO, request.ca_file.c_str());
    curl_easy_setopt(easy, CURLOPT_CAPATH, nullptr);
  }
  if (request.method == "HEAD") {
    curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
  } else if (request.method != "GET") {
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
}

void Transfer::configure() {
  curl_easy_setopt(easy, CURLOPT_PRIVATE, this);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, this);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(request.connect_timeout.count()));
  write_headers();
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, header_list.empty() ? nullptr : header_list.data());
  if (request.method != "GET" && request.method != "HEAD") {
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.data());
  }
}

/// libcurl's list of lines, each where it stands in the request's own text. It reads the list and leaves it to its owner.
void Transfer::write_headers() {
  auto& text = request.headers.text();
  if (request.body.size() >= kExpectsFrom) text.append("Expect:").push_back('\0');
  header_list.reserve(request.headers.size() + 1);
  for (std::size_t at = 0; at < text.size(); at = text.find('\0', at) + 1) header_list.push_back({&text[at], nullptr});
  for (std::size_t i = 1; i < header_list.size(); ++i) header_list[i - 1].next = &header_list[i];
}

}  // namespace takt
