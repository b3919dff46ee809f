#include "core/http/client.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <unordered_map>

#include "core/http/admission.h"
#include "core/http/http_loop.h"
#include "core/http/transfer.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr int kMostConnections = 65'536;
/// What a further loop opens for itself, rounded up: epoll, eventfd and the two ends of libcurl's wake-up.
constexpr int kLoopDescriptors = 8;
/// A further loop is worth its descriptors where there is room for this many connections for each.
constexpr int kWorthALoop = 32;

/// Connections that the limit of descriptors has room for beside what is open and what is reserved.
int connections_possible(int reserved) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > kMostConnections) return kMostConnections;
  std::error_code unknown;
  const auto open = std::distance(std::filesystem::directory_iterator("/proc/self/fd", unknown), std::filesystem::directory_iterator());
  return std::max(1, static_cast<int>(limit.rlim_cur) - static_cast<int>(open) - reserved);
}

std::string host_of(const std::string& url) {
  const auto scheme = url.find("://");
  const auto end = url.find_first_of("/?#", scheme == std::string::npos ? 0 : scheme + 3);
  return to_lower(std::string_view(url).substr(0, end));
}

}  // namespace

void HttpHeaders::add(std::string_view name, std::string_view value) {
  text_.append(name);
  // "Name;" is libcurl's way to send a header with an empty value.
  if (value.empty())
    text_ += ';';
  else
    text_.append(": ").append(value);
  text_ += '\0';
  ++count_;
}

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

/// The loops, and who may begin in which. The mutex guards admission_ and waiting_; no callback runs under it.
class HttpClient::Loops {
 public:
  explicit Loops(Settings settings)
      : settings_(std::move(settings)),
        possible_(connections_possible(settings_.reserved_descriptors)),
        count_(std::clamp(possible_ / kWorthALoop, 1, settings_.threads)),
        connections_(possible_ - (count_ - 1) * kLoopDescriptors),
        admission_(settings_.host_connections, connections_, count_) {
    for (int lane = 0; lane < count_; ++lane) {
      const HttpLoop::Settings own{admission_.places(lane), (settings_.idle_connections + count_ - 1) / count_};
      loops_.push_back(
          std::make_unique<HttpLoop>(own, settings_.outbound, [this, lane](const std::string& host) { return next(host, lane); }));
    }
  }

  ~Loops() {
    std::unordered_map<std::uint64_t, std::unique_ptr<Transfer>> waiting;
    {
      const std::scoped_lock lock(mutex_);
      waiting.swap(waiting_);
      for (const auto& [id, transfer] : waiting) admission_.withdraw(id, transfer->host);
    }
    for (auto& [id, transfer] : waiting) give_up(std::move(transfer));
    for (const auto& loop : loops_) loop->stop();
  }

  std::uint64_t start(HttpRequest request, Done done) {
    auto transfer = std::make_unique<Transfer>();
    transfer->request = std::move(request);
    transfer->done = std::move(done);
    transfer->asked = std::chrono::steady_clock::now();
    transfer->host = host_of(transfer->request.url);
    std::optional<int> lane;
    std::uint64_t id = 0;
    {
      const std::scoped_lock lock(mutex_);
      transfer->id = id = ++last_id_;
      lane = admission_.enter(id, transfer->host, current_lane());
      if (!lane) waiting_[id] = std::move(transfer);
    }
    if (lane) loops_[static_cast<std::size_t>(*lane)]->begin(std::move(transfer));
    return id;
  }

  void cancel(std::uint64_t id) {
    std::unique_ptr<Transfer> waiting;
    {
      const std::scoped_lock lock(mutex_);
      if (const auto found = waiting_.find(id); found != waiting_.end()) {
        admission_.withdraw(id, found->second->host);
        waiting = std::move(found->second);
        waiting_.erase(found);
      }
    }
    if (waiting) return give_up(std::move(waiting));
    for (const auto& loop : loops_) loop->cancel(id);
  }

  [[nodiscard]] int connections() const { return connections_; }

 private:
  /// A request whose callback starts the next one keeps its connection warm.
  [[nodiscard]] int current_lane() const {
    const auto own = std::find_if(loops_.begin(), loops_.end(), [](const auto& loop) { return loop->is_current_thread(); });
    return own == loops_.end() ? -1 : static_cast<int>(own - loops_.begin());
  }

  std::unique_ptr<Transfer> next(const std::string& host, int lane) {
    const std::scoped_lock lock(mutex_);
    const auto id = admission_.leave(host, lane);
    if (!id) return nullptr;
    const auto found = waiting_.find(*id);
    auto transfer = std::move(found->second);
    waiting_.erase(found);
    return transfer;
  }

  /// Callbacks are a loop's to call, whichever.
  void give_up(std::unique_ptr<Transfer> transfer) {
    transfer->given_up = true;
    loops_.front()->begin(std::move(transfer));
  }

  const Settings settings_;
  const int possible_, count_, connections_;
  std::mutex mutex_;
  Admission admission_;
  std::uint64_t last_id_ = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<Transfer>> waiting_;
  std::vector<std::unique_ptr<HttpLoop>> loops_;  // constant while requests can be started
};

HttpClient::HttpClient(Settings settings) : loops_(std::make_unique<Loops>(std::move(settings))) {}
HttpClient::~HttpClient() = default;
std::uint64_t HttpClient::start(HttpRequest request, Done done) { return loops_->start(std::move(request), std::move(done)); }
void HttpClient::cancel(std::uint64_t id) { loops_->cancel(id); }
int HttpClient::connections() const { return loops_->connections(); }

}  // namespace takt
