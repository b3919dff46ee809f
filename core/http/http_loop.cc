#include "core/http/http_loop.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace takt {

namespace {

constexpr std::size_t kMaxIdleHandles = 256;

bool is_connected(curl_socket_t socket) {
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  return ::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &length) == 0;
}

}  // namespace

HttpLoop::HttpLoop(Settings settings, const OutboundPolicy& outbound, TakeNext take_next)
    : outbound_(outbound), take_next_(std::move(take_next)) {
  static const bool initialised = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  multi_ = initialised ? curl_multi_init() : nullptr;
  if (multi_ == nullptr || uv_loop_init(&loop_) != 0) throw std::runtime_error("libcurl or libuv cannot be started");
  curl_multi_setopt(multi_, CURLMOPT_SOCKETFUNCTION, on_socket);
  curl_multi_setopt(multi_, CURLMOPT_SOCKETDATA, this);
  curl_multi_setopt(multi_, CURLMOPT_TIMERFUNCTION, on_timer_wanted);
  curl_multi_setopt(multi_, CURLMOPT_TIMERDATA, this);
  curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(std::min(settings.idle_connections, settings.connections)));
  // Never reached by active ones: it makes libcurl close an idle one for a new one.
  curl_multi_setopt(multi_, CURLMOPT_MAX_TOTAL_CONNECTIONS, static_cast<long>(settings.connections));
  curl_multi_setopt(multi_, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);
  uv_timer_init(&loop_, &timer_);
  timer_.data = this;
  uv_async_init(&loop_, &wake_, [](uv_async_t*) {});
  wake_.data = this;
  uv_prepare_init(&loop_, &before_poll_);
  before_poll_.data = this;
  uv_prepare_start(&before_poll_, [](uv_prepare_t* handle) { static_cast<HttpLoop*>(handle->data)->collect(); });
  thread_ = std::thread([this] { uv_run(&loop_, UV_RUN_DEFAULT); });
}

void HttpLoop::stop() {
  if (stopping_.exchange(true)) return;
  uv_async_send(&wake_);
  thread_.join();
}

HttpLoop::~HttpLoop() {
  stop();
  for (const auto& idle : idle_) curl_easy_cleanup(idle.easy);
  curl_multi_cleanup(multi_);
  uv_run(&loop_, UV_RUN_DEFAULT);  // close callbacks of sockets that the clean-up ended
  uv_loop_close(&loop_);
}

void HttpLoop::command(Command&& what) {
  bool first = false;
  {
    const std::scoped_lock lock(mutex_);
    first = commands_.empty();
    commands_.push_back(std::move(what));
  }
  if (first && !is_current_thread()) uv_async_send(&wake_);  // the thread itself looks after each callback
}

void HttpLoop::obey() {
  std::vector<Command> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(commands_);
  }
  while (!commands.empty()) {
    for (auto& command : commands) {
      if (auto* transfer = std::get_if<std::unique_ptr<Transfer>>(&command)) {
        start(std::move(*transfer));
      } else if (const auto found = transfers_.find(std::get<std::uint64_t>(command)); found != transfers_.end()) {
        finish(found->second.get(), HttpFault::cancelled, "cancelled");
      }
    }
    commands.clear();
    const std::scoped_lock lock(mutex_);
    commands.swap(commands_);  // what the callbacks of these asked for, and what took the places of those that ended
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

void HttpLoop::take_handle(Transfer& transfer) {
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
  if (transfer.easy != nullptr) transfer.set_up();
}

void HttpLoop::start(std::unique_ptr<Transfer> owned) {
  Transfer* transfer = owned.get();
  transfers_[transfer->id] = std::move(owned);
  if (transfer->given_up) return finish(transfer, HttpFault::cancelled, "cancelled");
  transfer->loop = this;
  transfer->started = std::chrono::steady_clock::now();
  transfer->request.timeout -= std::chrono::duration_cast<Duration>(transfer->started - transfer->asked);
  if (transfer->request.timeout <= Duration(0)) {
    return finish(transfer, HttpFault::timeout, "no connection to the host was free in time");
  }
  if (transfer->request.url != judged_url_) {
    judged_url_ = transfer->request.url;
    judged_ = outbound_.judge_url(judged_url_);
  }
  if (judged_.refusal) return finish(transfer, HttpFault::refused, "the URL " + *judged_.refusal);
  transfer->by_name = judged_.by_name;
  take_handle(*transfer);
  if (transfer->easy == nullptr) return finish(transfer, HttpFault::protocol, "out of memory");
  transfer->configure();
  const CURLMcode code = curl_multi_add_handle(multi_, transfer->easy);
  if (code != CURLM_OK) finish(transfer, HttpFault::protocol, curl_multi_strerror(code));
}

void HttpLoop::finish(Transfer* transfer, HttpFault fault, std::string error) {
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
  if (!owned->given_up) {
    owned->response.seconds = seconds_between(owned->started, std::chrono::steady_clock::now());
    if (auto next = take_next_(owned->host)) command(std::move(next));
  }
  owned->done(std::move(owned->response));
}

void HttpLoop::collect() {
  int left = 0;
  while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    Transfer* transfer = nullptr;
    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
    long status = 0;
    curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &status);
    transfer->response.status = static_cast<int>(status);
    const CURLcode code = message->data.result;
    const HttpFault fault = transfer->fault(code);
    finish(transfer, fault, transfer->words(fault, code));
  }
  obey();
}

curl_socket_t HttpLoop::open_socket(void* user, curlsocktype /*purpose*/, curl_sockaddr* address) {
  auto& transfer = *static_cast<Transfer*>(user);
  HttpLoop* self = transfer.loop;
  // A kept connection serves none but requests to the very host it was made for (libcurl compares the names), of which the
  // policy, which never changes, says the same.
  if (self->outbound_.refuses_address(address->addr, transfer.by_name)) {
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
HttpLoop::Watch* HttpLoop::watch(curl_socket_t socket) {
  forget(socket);  // what had this number before
  auto watch = std::make_unique<Watch>();
  watch->socket = socket;
  watch->loop = this;
  watch->poll.data = watch.get();
  if (uv_poll_init_socket(&loop_, &watch->poll, socket) != 0) return nullptr;
  return (watches_[socket] = std::move(watch)).get();
}

int HttpLoop::close_socket(void* user, curl_socket_t socket) {
  static_cast<HttpLoop*>(user)->forget(socket);
  return ::close(socket);
}

void HttpLoop::forget(curl_socket_t socket) {
  const auto found = watches_.find(socket);
  if (found == watches_.end()) return;
  uv_close(reinterpret_cast<uv_handle_t*>(&found->second->poll), [](uv_handle_t* handle) { delete static_cast<Watch*>(handle->data); });
  static_cast<void>(found->second.release());  // its close callback deletes it
  watches_.erase(found);
}

int HttpLoop::on_socket(CURL* /*easy*/, curl_socket_t socket, int what, void* user, void* /*socket_user*/) {
  auto* self = static_cast<HttpLoop*>(user);
  const auto found = self->watches_.find(socket);
  Watch* watch = found == self->watches_.end() ? nullptr : found->second.get();
  if (what == CURL_POLL_REMOVE) {
    // One that libcurl has not seen connected is closed by libcurl itself, without close_socket(); and a socket that is closed before
    // epoll knows it has libuv end the process. So nobody looks at it any more, until libcurl wants it again.
    if (watch != nullptr && !watch->connected) {
      watch->connected = watch->opened_here && is_connected(socket);
      if (watch->connected) uv_poll_stop(&watch->poll);
      watch->watched = 0;
    }
    if (watch != nullptr && watch->connected)
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

void HttpLoop::on_ready(uv_poll_t* handle, int status, int ready) {
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

int HttpLoop::on_timer_wanted(CURLM* /*multi*/, long timeout_ms, void* user) {
  auto* self = static_cast<HttpLoop*>(user);
  if (timeout_ms < 0 || uv_is_closing(reinterpret_cast<uv_handle_t*>(&self->timer_)) != 0) {
    uv_timer_stop(&self->timer_);
    return 0;
  }
  uv_timer_start(
      &self->timer_,
      [](uv_timer_t* handle) {
        auto* loop = static_cast<HttpLoop*>(handle->data);
        int running = 0;
        curl_multi_socket_action(loop->multi_, CURL_SOCKET_TIMEOUT, 0, &running);
      },
      static_cast<std::uint64_t>(timeout_ms), 0);
  return 0;
}

}  // namespace takt
