#pragma once
#include <curl/curl.h>
#include <uv.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/http/outbound_policy.h"
#include "core/http/transfer.h"

namespace takt {

/// libcurl's multi interface on a libuv loop, with connections of its own, driven by one thread of this object: all below
/// the queue of commands runs on that thread alone.
/// begin() and cancel() may be called from any thread. Stop order: stop(), then destroy.
class HttpLoop {
 public:
  struct Settings {
    int connections;       ///< open at once at most, kept ones included; begin() is never asked for more
    int idle_connections;  ///< kept open for reuse
  };
  /// Asked when a request to this host has ended: one that waits for its place.
  using TakeNext = std::function<std::unique_ptr<Transfer>(const std::string& host)>;

  HttpLoop(Settings settings, const OutboundPolicy& outbound, TakeNext take_next);
  ~HttpLoop();
  HttpLoop(const HttpLoop&) = delete;
  HttpLoop& operator=(const HttpLoop&) = delete;

  void begin(std::unique_ptr<Transfer> transfer) { command(std::move(transfer)); }
  /// Cancels what is under way and waits for the thread's end.
  void stop();
  /// Nothing happens unless it is under way here.
  void cancel(std::uint64_t id) { command(id); }
  [[nodiscard]] bool is_current_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

  // libcurl's sockets are opened and closed here, so that a kept connection's watch is kept with it: to end and begin it
  // with every request would cost several system calls. `user`: the Transfer that opens it, the loop that closes it.
  static curl_socket_t open_socket(void* user, curlsocktype purpose, curl_sockaddr* address);
  static int close_socket(void* user, curl_socket_t socket);

 private:
  using Command = std::variant<std::unique_ptr<Transfer>, std::uint64_t>;

  struct Watch {
    uv_poll_t poll{};
    curl_socket_t socket = CURL_SOCKET_BAD;
    HttpLoop* loop = nullptr;
    bool opened_here = false;  ///< by open_socket: a connection, and not a socket of libcurl's own
    bool connected = false;
    int wanted = 0, watched = 0;  ///< UV_READABLE, UV_WRITABLE: what libcurl asks for, what libuv looks for
  };

  /// A handle that is kept with what it was last set up for: most often the next request is like it.
  struct Handle {
    CURL* easy = nullptr;
    std::string url, method, ca_file;
    ParsedUrl parsed;
  };

  void command(Command&& what);
  void obey();
  void take_handle(Transfer& transfer);
  void start(std::unique_ptr<Transfer> transfer);
  void finish(Transfer* transfer, HttpFault fault, std::string error);
  void collect();

  Watch* watch(curl_socket_t socket);
  void forget(curl_socket_t socket);
  static int on_socket(CURL* easy, curl_socket_t socket, int what, void* user, void* socket_user);
  static void on_ready(uv_poll_t* handle, int status, int ready);
  static int on_timer_wanted(CURLM* multi, long timeout_ms, void* user);

  const OutboundPolicy& outbound_;
  const TakeNext take_next_;
  uv_loop_t loop_{};
  uv_timer_t timer_{};
  uv_async_t wake_{};
  uv_prepare_t before_poll_{};
  CURLM* multi_ = nullptr;
  std::unordered_map<std::uint64_t, std::unique_ptr<Transfer>> transfers_;
  std::unordered_map<curl_socket_t, std::unique_ptr<Watch>> watches_;
  std::string judged_url_;  // the last one begun: a run's requests all have the same
  OutboundPolicy::Judged judged_{"is not a URL"};
  std::vector<Handle> idle_;
  std::mutex mutex_;
  std::vector<Command> commands_;  // guarded by mutex_
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace takt
