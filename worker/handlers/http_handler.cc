#include "worker/handlers/http_handler.h"

#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>

#include "core/crash_point.h"
#include "worker/handlers/http_reply.h"

namespace takt {

namespace {

constexpr Duration kLookAtControl = std::chrono::milliseconds(50);

/// 16 hexadecimal digits, as W3C Trace Context wants: the item's id, which differs from all others of its run's trace.
std::string span_id(const ClaimedItem& item) {
  std::array<char, 17> digits{};
  static_cast<void>(std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(item.id)));
  return digits.data();
}

/// A refusal is an answer: only silence, an unusable answer and the server's own failures speak against the destination.
/// A request that was cancelled here says nothing; it counts as neither, which for a closed circuit is a success.
bool destination_works(const HttpResponse& response) {
  switch (response.fault) {
    case HttpFault::cancelled:
    case HttpFault::too_large:
    case HttpFault::refused:
    case HttpFault::exhausted: return true;
    default: return response.fault == HttpFault::none && response.status < 500;
  }
}

/// What run() and the callbacks of its requests share.
struct Progress {
  std::mutex mutex;
  std::condition_variable finished;
  std::map<std::size_t, std::uint64_t> in_flight;  // item index → request, 0 until it is known; guarded by mutex
  std::size_t next = 0;                            // guarded by mutex
  std::vector<double> seconds;                     // of those done; guarded by mutex
};

}  // namespace

HttpRequest HttpHandler::request_for(const RunContext& context, const HttpHandlerConfig& config, const SigningKeys& keys,
                                     const ClaimedItem& item) const {
  HttpRequest request;
  request.method = config.method;
  request.url = config.url;
  request.timeout = config.timeout;
  request.connect_timeout = config.connect_timeout;
  request.max_response = static_cast<std::size_t>(config.max_response);
  request.ca_file = config.ca_file;
  const bool has_body = config.method != "GET" && config.method != "HEAD";
  if (has_body) request.body = item.payload;
  // The same id on every attempt, so that the receiver can recognise a repeat.
  const std::string id = "item-" + std::to_string(item.id);
  const auto now = clock_.now();
  const auto now_s = std::chrono::floor<std::chrono::seconds>(now).time_since_epoch().count();
  auto& lines = request.header_lines;
  lines.reserve(400);
  const auto add = [&lines](std::string_view name, std::string_view value) {
    if (!lines.empty()) lines += "\r\n";
    lines.append(name).append(": ").append(value);
  };
  auto& headers = request.headers;
  headers.reserve(3 + config.headers.size());
  if (has_body) headers.emplace_back("Content-Type", "application/json");
  add("User-Agent", "Takt");
  add("webhook-id", id);
  add("webhook-timestamp", std::to_string(now_s));
  add("webhook-signature", keys.sign_also_retired(id, now_s, request.body, now));
  add("Takt-Job", context.job.name);
  add("Takt-Attempt", std::to_string(item.attempt));
  add("Takt-Run", std::to_string(context.run_id));
  add("traceparent", "00-" + context.trace_id + "-" + span_id(item) + "-01");
  for (const auto& [name, value] : config.headers) headers.emplace_back(name, value);
  if (!config.bearer_env.empty()) {
    if (const char* token = std::getenv(config.bearer_env.c_str()); token != nullptr) {
      headers.emplace_back("Authorization", std::string("Bearer ") + token);
    }
  }
  return request;
}

Readiness HttpHandler::readiness(const JobDefinition& job) {
  const auto& config = std::get<HttpHandlerConfig>(job.handler);
  const auto allowance = circuits_.allowance(destination_of(config), config.circuit);
  metrics_.circuit_open(job.name, allowance.state != CircuitBreaker::State::closed);
  return {allowance.items, allowance.pause};
}

void HttpHandler::run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  const auto& config = std::get<HttpHandlerConfig>(context.job.handler);
  if (!config.bearer_env.empty() && std::getenv(config.bearer_env.c_str()) == nullptr) {
    for (auto& result : results) {
      result.item_class = ItemClass::error;
      result.reason = "bearer_missing";
      result.error = "the environment variable " + config.bearer_env + " is not set in this worker";
    }
    return;
  }

  const std::string destination = destination_of(config);
  const auto keys = keys_.webhooks(context.job.name);  // this job's own: its receiver can verify with it, and forge nothing
  Progress progress;
  // Each request that ends begins the next, on the client's thread: no thread is woken for it.
  const std::function<void()> begin_next = [&] {
    std::size_t index = 0;
    std::optional<CircuitBreaker::Pass> pass;
    {
      const std::scoped_lock lock(progress.mutex);
      if (context.control.stopped() || std::chrono::steady_clock::now() >= context.deadline || progress.next >= items.size()) return;
      pass = circuits_.begin(destination, config.circuit);
      if (!pass) return;
      index = progress.next++;
      progress.in_flight[index] = 0;
    }
    const auto id = client_.start(request_for(context, config, *keys, items[index]), [&, index, pass](HttpResponse&& response) {
      results[index] = judge_reply(response, config.method, clock_.now(), keep_body_);
      circuits_.end(destination, config.circuit, *pass, destination_works(response));
      crash_point("worker.mid_handler");
      begin_next();
      const std::scoped_lock lock(progress.mutex);  // held while notifying: run() must not return before this ends
      progress.seconds.push_back(response.seconds);
      progress.in_flight.erase(index);
      if (progress.in_flight.empty()) progress.finished.notify_one();
    });
    const std::scoped_lock lock(progress.mutex);
    if (const auto begun = progress.in_flight.find(index); begun != progress.in_flight.end()) begun->second = id;  // else done already
  };
  for (int i = 0; i < config.parallel; ++i) begin_next();
  std::unique_lock lock(progress.mutex);
  while (!progress.in_flight.empty()) {
    if (context.control.cancelled()) {
      for (const auto& [index, id] : progress.in_flight) client_.cancel(id);
    }
    progress.finished.wait_for(lock, kLookAtControl);
  }
  metrics_.handler_latencies(context.job.name, progress.seconds);
}

}  // namespace takt
