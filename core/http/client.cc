#include "core/http/client.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include <atomic>
#include <deque>
#include <filesystem>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <variant>

#include "core/text.h"

namespace takt {

namespace {

/// How long an address is remembered: a destination that moves is followed after that.
constexpr std::chrono::duration<long> kKeepNames = std::chrono::seconds(10);
constexpr std::size_t kMaxHeaderBytes = 64 * 1024;
constexpr std::size_t kMaxIdleHandles = 256;
constexpr int kMostConnections = 65'536;
/// From this size on libcurl would ask the server before it sends a body, and wait a second for servers that do not know
/// of it (RFC 9110, section 10.1.1).
constexpr std::size_t kExpectsFrom = 1024 * 1024;

/// One request on its way.
/// A URL that libcurl need not take apart again for each request.
struct UrlCleanup {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using ParsedUrl = std::unique_ptr<CURLU, UrlCleanup>;

struct Transfer {
  std::uint64_t id = 0;
  void* loop = nullptr;  ///< the Loop it belongs to, for libcurl's callbacks
  HttpRequest request;
  HttpClient::Done done;
  HttpResponse response;
  std::string host;  ///< scheme://host:port, as Loop::hosts_ counts them
  CURL* easy = nullptr;
  ParsedUrl parsed;                      ///< `easy` has its URL from here
  std::string header_text;               ///< "Name: value", each with its NUL
  std::vector<curl_slist> header_lines;  ///< into header_text
  std::size_t header_bytes = 0;
  bool too_large = false;
  bool refused = false;    ///< an address it would have gone to
  bool exhausted = false;  ///< no descriptor was left for its connection
  bool admitted = false;   ///< counted among its host's active ones
  SteadyTime asked, started;
  char error[CURL_ERROR_SIZE] = {};
};

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

bool means_exhausted(int error) { return error == EMFILE || error == ENFILE; }

/// True if this process may open nothing more: then it is not the destination that failed.
bool out_of_descriptors() {
  const int descriptor = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return means_exhausted(errno);
  ::close(descriptor);
  return false;
}

/// Connections that the limit of descriptors has room for beside what is open and what is reserved.
int connections_possible(int reserved) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > kMostConnections) return kMostConnections;
  std::error_code unknown;
  const auto open = std::distance(std::filesystem::directory_iterator("/proc/self/fd", unknown), std::filesystem::directory_iterator());
  return std::max(1, static_cast<int>(limit.rlim_cur) - static_cast<int>(open) - reserved);
}

bool is_connected(curl_socket_t socket) {
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  return ::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &length) == 0;
}

HttpFault fault_of(CURLcode code, const Transfer& transfer) {
  if (transfer.too_large) return HttpFault::too_large;
  if (transfer.refused && code != CURLE_OK) return HttpFault::refused;
  if (transfer.exhausted && code != CURLE_OK) return HttpFault::exhausted;
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

}  // namespace

std::string_view to_string(HttpFault fault) {
  switch (fault) {
    case HttpFault::none: return "none";
    case HttpFault::cancelled: return "cancelled";
    case HttpFault::timeout: return "timeout";
    case HttpFault::resolve: return "dns";
    case HttpFault::connect: return "connect";
    case HttpFault::tls: return "tls";
    case HttpFault::too_large: return "response_too_large";
    case HttpFault::protocol: return "protocol";
    case HttpFault::refused: return "outbound_policy";
    case HttpFault::exhausted: return "worker_exhausted";
  }
  return "?";
}

/// Everything below the queue runs on thread_ alone.
class HttpClient::Loop {
 public:
  explicit Loop(Settings settings) : settings_(std::move(settings)), connections_(connections_possible(settings_.reserved_descriptors)) {
    static const bool initialised = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    multi_ = initialised ? curl_multi_init() : nullptr;
    if (multi_ == nullptr || uv_loop_init(&loop_) != 0) throw std::runtime_error("libcurl or libuv cannot be started");
    curl_multi_setopt(multi_, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(multi_, CURLMOPT_SOCKETDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_TIMERFUNCTION, on_timer_wanted);
    curl_multi_setopt(multi_, CURLMOPT_TIMERDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(std::min(settings_.idle_connections, connections_)));
    // Never reached by active ones (admit() sees to that): it makes libcurl close an idle one for a new one.
    curl_multi_setopt(multi_, CURLMOPT_MAX_TOTAL_CONNECTIONS, static_cast<long>(connections_));
    curl_multi_setopt(multi_, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);
    uv_timer_init(&loop_, &timer_);
    timer_.data = this;
    uv_async_init(&loop_, &wake_, [](uv_async_t*) {});
    wake_.data = this;
    uv_prepare_init(&loop_, &before_poll_);
    before_poll_.data = this;
    uv_prepare_start(&before_poll_, [](uv_prepare_t* handle) { static_cast<Loop*>(handle->data)->collect(); });
    thread_ = std::thread([this] { uv_run(&loop_, UV_RUN_DEFAULT); });
  }

  ~Loop() {
    stopping_ = true;
    uv_async_send(&wake_);
    thread_.join();
    for (const auto& idle : idle_) curl_easy_cleanup(idle.easy);
    curl_multi_cleanup(multi_);
    uv_run(&loop_, UV_RUN_DEFAULT);  // close callbacks of sockets that the clean-up ended
    uv_loop_close(&loop_);
  }

  std::uint64_t start(HttpRequest request, Done done) {
    auto transfer = std::make_unique<Transfer>();
    const std::uint64_t id = ++last_id_;
    transfer->id = id;
    transfer->loop = this;
    transfer->request = std::move(request);
    transfer->done = std::move(done);
    transfer->asked = std::chrono::steady_clock::now();
    command(std::move(transfer));
    return id;
  }

  void cancel(std::uint64_t id) { command(id); }
  [[nodiscard]] int connections() const { return connections_; }

 private:
  using Command = std::variant<std::unique_ptr<Transfer>, std::uint64_t>;

  /// What goes to one host: libcurl could hold back what is over the limit, but then looks at all of it again whenever
  /// one request ends.
  struct Host {
    int active = 0;
    std::deque<std::uint64_t> waiting;  ///< ids; those cancelled meanwhile are skipped
  };

  void command(Command&& what) {
    const bool own_thread = std::this_thread::get_id() == thread_.get_id();
    bool first = false;
    {
      const std::scoped_lock lock(mutex_);
      first = commands_.empty();
      commands_.push_back(std::move(what));
    }
    if (first && !own_thread) uv_async_send(&wake_);  // the thread itself looks after each callback
  }

  struct Watch {
    uv_poll_t poll{};
    curl_socket_t socket = CURL_SOCKET_BAD;
    Loop* loop = nullptr;
    bool opened_here = false;     ///< by on_open: a connection, and not a socket of libcurl's own
    int wanted = 0, watched = 0;  ///< UV_READABLE, UV_WRITABLE: what libcurl asks for, what libuv looks for
  };

  void on_wake() {
    std::vector<Command> commands;
    {
      const std::scoped_lock lock(mutex_);
      commands.swap(commands_);
    }
    while (!commands.empty()) {
      for (auto& command : commands) {
        if (auto* transfer = std::get_if<std::unique_ptr<Transfer>>(&command)) {
          admit(std::move(*transfer));
        } else if (const auto found = transfers_.find(std::get<std::uint64_t>(command)); found != transfers_.end()) {
          finish(found->second.get(), HttpFault::cancelled, "cancelled");
        }
      }
      commands.clear();
      const std::scoped_lock lock(mutex_);
      commands.swap(commands_);  // what the callbacks of these asked for
    }
    if (!stopping_) return;
    while (!transfers_.empty()) finish(transfers_.begin()->second.get(), HttpFault::cancelled, "shutting down");
    uv_timer_stop(&timer_);
    if (uv_is_closing(reinterpret_cast<uv_handle_t*>(&wake_)) == 0) {
      uv_close(reinterpret_cast<uv_handle_t*>(&wake_), nullptr);
      uv_close(reinterpret_cast<uv_handle_t*>(&timer_), nullptr);
      uv_close(reinterpret_cast<uv_handle_t*>(&before_poll_), nullptr);
    }
    uv_stop(&loop_);
  }

  /// A handle that is kept with what it was last set up for: most often the next request is like it.
  struct Handle {
    CURL* easy = nullptr;
    std::string url, method, ca_file;
    ParsedUrl parsed;
  };

  void take_handle(Transfer& transfer) {
    const auto& request = transfer.request;
    Handle handle;
    if (!idle_.empty()) {
      handle = std::move(idle_.back());
      idle_.pop_back();
      if (handle.url == request.url && handle.method == request.method && handle.ca_file == request.ca_file) {
        transfer.easy = handle.easy;
        transfer.parsed = std::move(handle.parsed);
        return;
      }
      curl_easy_reset(handle.easy);
    } else {
      handle.easy = curl_easy_init();
    }
    transfer.easy = handle.easy;
    if (transfer.easy != nullptr) set_up(transfer);
  }

  static std::string host_of(const std::string& url) {
    const auto scheme = url.find("://");
    const auto end = url.find_first_of("/?#", scheme == std::string::npos ? 0 : scheme + 3);
    return to_lower(std::string_view(url).substr(0, end));
  }

  void admit(std::unique_ptr<Transfer> owned) {
    auto* transfer = owned.get();
    transfer->host = host_of(transfer->request.url);
    transfers_[transfer->id] = std::move(owned);
    const auto host = hosts_.find(transfer->host);
    if (host != hosts_.end() && host->second.active >= settings_.host_connections) {
      host->second.waiting.push_back(transfer->id);
    } else if (active_ >= connections_) {
      waiting_.push_back(transfer->id);
    } else {
      begin(transfer);
    }
  }

  /// A request to this host has ended; one that waits takes its place: this host's next, behind those of others that
  /// already wait for a place among all.
  void release(const std::string& name) {
    --active_;
    --hosts_[name].active;
    bring_forward(name);
    while (!waiting_.empty()) {
      const auto found = transfers_.find(waiting_.front());
      waiting_.pop_front();
      if (found == transfers_.end()) continue;  // cancelled
      auto& host = hosts_[found->second->host];
      if (host.active < settings_.host_connections) return begin(found->second.get());
      host.waiting.push_front(found->first);
    }
  }

  /// A request to this host no longer goes or waits; the next that waits for the host waits for a place among all.
  void bring_forward(const std::string& name) {
    const auto host = hosts_.find(name);
    if (host == hosts_.end()) return;
    auto& waiting = host->second.waiting;
    while (!waiting.empty() && !transfers_.contains(waiting.front())) waiting.pop_front();
    if (!waiting.empty()) {
      waiting_.push_back(waiting.front());
      waiting.pop_front();
    }
    if (waiting.empty() && host->second.active == 0) hosts_.erase(host);
  }

  void begin(Transfer* transfer) {
    ++active_;
    ++hosts_[transfer->host].active;
    transfer->started = std::chrono::steady_clock::now();
    const auto waited = std::chrono::duration_cast<Duration>(transfer->started - transfer->asked);
    transfer->request.timeout -= waited;
    transfer->admitted = true;
    if (transfer->request.timeout <= Duration(0)) {
      return finish(transfer, HttpFault::timeout, "no connection to the host was free in time");
    }
    if (transfer->request.url != judged_url_) {
      judged_url_ = transfer->request.url;
      url_refused_ = settings_.outbound.refuses_url(judged_url_);
    }
    if (url_refused_) return finish(transfer, HttpFault::refused, "the URL " + *url_refused_);
    take_handle(*transfer);
    if (transfer->easy == nullptr) return finish(transfer, HttpFault::protocol, "out of memory");
    configure(*transfer);
    const CURLMcode code = curl_multi_add_handle(multi_, transfer->easy);
    if (code != CURLM_OK) finish(transfer, HttpFault::protocol, curl_multi_strerror(code));
  }

  /// What requests to one place have in common.
  void set_up(Transfer& transfer) {
    CURL* easy = transfer.easy;
    const auto& request = transfer.request;
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    // A lookup that is given up is left to its thread, which ends when the resolver does: else libcurl waits for it, and
    // with it this loop and every other request (20 s and more where a name server does not answer).
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, kKeepNames.count());
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, this);
    transfer.parsed.reset(curl_url());
    if (transfer.parsed && curl_url_set(transfer.parsed.get(), CURLUPART_URL, request.url.c_str(), CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK)
      curl_easy_setopt(easy, CURLOPT_CURLU, transfer.parsed.get());
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

  /// What is this request's own.
  static void configure(Transfer& transfer) {
    CURL* easy = transfer.easy;
    const auto& request = transfer.request;
    curl_easy_setopt(easy, CURLOPT_PRIVATE, &transfer);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer.error);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, &transfer);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &transfer);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, &transfer);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(request.connect_timeout.count()));
    write_headers(transfer);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer.header_lines.empty() ? nullptr : transfer.header_lines.data());
    if (request.method != "GET" && request.method != "HEAD") {
      curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
      curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.data());
    }
  }

  /// libcurl's list of lines, in two allocations instead of two a line. It reads the list and leaves it to its owner.
  static void write_headers(Transfer& transfer) {
    static constexpr std::string_view kNoExpect = "Expect:";
    const auto& headers = transfer.request.headers;
    std::size_t bytes = kNoExpect.size() + 1;
    for (const auto& [name, value] : headers) bytes += name.size() + value.size() + 3;
    auto& text = transfer.header_text;
    auto& lines = transfer.header_lines;
    text.reserve(bytes);
    lines.reserve(headers.size() + 1);
    const auto add = [&](auto... parts) {
      lines.push_back({text.data() + text.size(), nullptr});
      (text.append(parts), ...);
      text.push_back('\0');
    };
    for (const auto& [name, value] : headers) {
      // "Name;" is libcurl's way to send a header with an empty value.
      if (value.empty())
        add(std::string_view(name), ";");
      else
        add(std::string_view(name), ": ", std::string_view(value));
    }
    if (transfer.request.body.size() >= kExpectsFrom) add(kNoExpect);
    for (std::size_t i = 1; i < lines.size(); ++i) lines[i - 1].next = &lines[i];
  }

  void finish(Transfer* transfer, HttpFault fault, std::string error) {
    const auto found = transfers_.find(transfer->id);
    const auto owned = std::move(found->second);
    transfers_.erase(found);
    if (owned->easy != nullptr) {
      curl_multi_remove_handle(multi_, owned->easy);
      curl_easy_setopt(owned->easy, CURLOPT_ERRORBUFFER, nullptr);
      if (idle_.size() < kMaxIdleHandles)
        idle_.push_back({owned->easy, std::move(owned->request.url), std::move(owned->request.method), std::move(owned->request.ca_file),
                         std::move(owned->parsed)});
      else
        curl_easy_cleanup(owned->easy);
    }
    owned->response.fault = fault;
    owned->response.error = std::move(error);
    owned->response.seconds = owned->admitted ? seconds_between(owned->started, std::chrono::steady_clock::now()) : 0;
    if (owned->admitted)
      release(owned->host);
    else
      bring_forward(owned->host);
    owned->done(std::move(owned->response));
  }

  void collect() {
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      Transfer* transfer = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
      long status = 0;
      curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &status);
      transfer->response.status = static_cast<int>(status);
      const CURLcode code = message->data.result;
      const HttpFault fault = fault_of(code, *transfer);
      std::string words;
      if (fault == HttpFault::too_large) {
        words = transfer->header_bytes > kMaxHeaderBytes
                    ? "response headers larger than 64 KiB"
                    : "response body larger than " + std::to_string(transfer->request.max_response) + " bytes";
      } else if (fault == HttpFault::exhausted) {
        words = "this worker has no file descriptor left (ulimit -n); lower worker.host_connections or worker.runs";
      } else if (fault == HttpFault::refused) {
        words = "the outbound policy refuses the address that the host has";
      } else if (fault != HttpFault::none) {
        words = printable(transfer->error[0] != '\0' ? transfer->error : curl_easy_strerror(code), 300);
      }
      finish(transfer, fault, std::move(words));
    }
    on_wake();
  }

  /// libcurl's sockets are opened and closed here, so that a kept connection's watch is kept with it: to end and begin it
  /// with every request would cost several system calls.
  static curl_socket_t on_open(void* user, curlsocktype /*purpose*/, curl_sockaddr* address) {
    auto& transfer = *static_cast<Transfer*>(user);
    auto* self = static_cast<Loop*>(transfer.loop);
    if (self->settings_.outbound.refuses_address(address->addr)) {
      transfer.refused = true;
      return CURL_SOCKET_BAD;
    }
    const int socket = ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    if (socket < 0) {
      transfer.exhausted = means_exhausted(errno);
      return CURL_SOCKET_BAD;
    }
    Watch* watch = self->watch(socket);
    if (watch == nullptr) {
      ::close(socket);
      return CURL_SOCKET_BAD;
    }
    watch->opened_here = true;
    return socket;
  }

  /// Null when libuv cannot look at this socket.
  Watch* watch(curl_socket_t socket) {
    forget(socket);  // what had this number before
    auto watch = std::make_unique<Watch>();
    watch->socket = socket;
    watch->loop = this;
    watch->poll.data = watch.get();
    if (uv_poll_init_socket(&loop_, &watch->poll, socket) != 0) return nullptr;
    return (watches_[socket] = std::move(watch)).get();
  }

  static int on_close(void* user, curl_socket_t socket) {
    static_cast<Loop*>(user)->forget(socket);
    return ::close(socket);
  }

  void forget(curl_socket_t socket) {
    const auto found = watches_.find(socket);
    if (found == watches_.end()) return;
    uv_close(reinterpret_cast<uv_handle_t*>(&found->second->poll), [](uv_handle_t* handle) { delete static_cast<Watch*>(handle->data); });
    static_cast<void>(found->second.release());  // its close callback deletes it
    watches_.erase(found);
  }

  static int on_socket(CURL* /*easy*/, curl_socket_t socket, int what, void* user, void* /*socket_user*/) {
    auto* self = static_cast<Loop*>(user);
    const auto found = self->watches_.find(socket);
    Watch* watch = found == self->watches_.end() ? nullptr : found->second.get();
    if (what == CURL_POLL_REMOVE) {
      // One that never connected is closed by libcurl itself, without on_close.
      if (watch != nullptr && watch->opened_here && is_connected(socket))
        watch->wanted = 0;
      else
        self->forget(socket);
      return 0;
    }
    if (watch == nullptr) watch = self->watch(socket);
    if (watch == nullptr) return -1;
    watch->wanted = ((what & CURL_POLL_IN) != 0 ? UV_READABLE : 0) | ((what & CURL_POLL_OUT) != 0 ? UV_WRITABLE : 0);
    if (watch->watched != watch->wanted) uv_poll_start(&watch->poll, watch->watched = watch->wanted, on_ready);
    return 0;
  }

  static void on_ready(uv_poll_t* handle, int status, int ready) {
    auto& watch = *static_cast<Watch*>(handle->data);
    if (status < 0) watch.watched = 0;  // libuv has stopped looking
    if (watch.wanted == 0) {            // an idle connection, closed by its server: libcurl sees that when it would use it
      watch.watched = 0;
      uv_poll_stop(handle);
      return;
    }
    int flags = status < 0 ? CURL_CSELECT_ERR : 0;
    if ((ready & UV_READABLE) != 0) flags |= CURL_CSELECT_IN;
    if ((ready & UV_WRITABLE) != 0) flags |= CURL_CSELECT_OUT;
    int running = 0;
    curl_multi_socket_action(watch.loop->multi_, watch.socket, flags, &running);
  }

  static int on_timer_wanted(CURLM* /*multi*/, long timeout_ms, void* user) {
    auto* self = static_cast<Loop*>(user);
    if (timeout_ms < 0 || uv_is_closing(reinterpret_cast<uv_handle_t*>(&self->timer_)) != 0) {
      uv_timer_stop(&self->timer_);
      return 0;
    }
    uv_timer_start(
        &self->timer_,
        [](uv_timer_t* handle) {
          auto* loop = static_cast<Loop*>(handle->data);
          int running = 0;
          curl_multi_socket_action(loop->multi_, CURL_SOCKET_TIMEOUT, 0, &running);
        },
        static_cast<std::uint64_t>(timeout_ms), 0);
    return 0;
  }

  uv_loop_t loop_{};
  uv_timer_t timer_{};
  uv_async_t wake_{};
  uv_prepare_t before_poll_{};
  CURLM* multi_ = nullptr;
  const Settings settings_;
  const int connections_;  // active ones at most
  int active_ = 0;
  std::deque<std::uint64_t> waiting_;  // ids, for a place among connections_; those cancelled meanwhile are skipped
  std::unordered_map<std::uint64_t, std::unique_ptr<Transfer>> transfers_;
  std::unordered_map<curl_socket_t, std::unique_ptr<Watch>> watches_;
  std::unordered_map<std::string, Host> hosts_;              // those with requests
  std::string judged_url_;                                   // the last one begun: a run's requests all have the same
  std::optional<std::string> url_refused_ = "is not a URL";  // why the policy refuses it
  std::vector<Handle> idle_;
  std::mutex mutex_;
  std::vector<Command> commands_;  // guarded by mutex_
  std::atomic<std::uint64_t> last_id_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

HttpClient::HttpClient(Settings settings) : loop_(std::make_unique<Loop>(std::move(settings))) {}
HttpClient::~HttpClient() = default;
std::uint64_t HttpClient::start(HttpRequest request, Done done) { return loop_->start(std::move(request), std::move(done)); }
void HttpClient::cancel(std::uint64_t id) { loop_->cancel(id); }
int HttpClient::connections() const { return loop_->connections(); }

}  // namespace takt
