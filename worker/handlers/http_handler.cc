#include "worker/handlers/http_handler.h"

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>

#include "core/process/crash_point.h"
#include "worker/handlers/http_reply.h"

namespace takt {

namespace {

constexpr Duration kLookAtControl = std::chrono::milliseconds(50);

/// W3C Trace Context: the run's trace, and as its span the item's id, which differs from all others of that trace.
std::string traceparent(const std::string& trace_id, const ClaimedItem& item) {
  std::string value;
  value.reserve(55);
  value.append("00-").append(trace_id).append("-");
  for (int shift = 60; shift >= 0; shift -= 4) value += "0123456789abcdef"[(static_cast<std::uint64_t>(item.id) >> shift) & 15U];
  return value.append("-01");
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

/// What is thrown by `body` is the item's error.
template <typename Body>
HandlerResult guarded(Body body) {
  HandlerResult result;
  try {
    return body();
  } catch (const std::exception& error) {
    result.error = error.what();
  } catch (...) {
    result.error = "something that is no std::exception";
  }
  result.item_class = ItemClass::error;
  result.reason = "handler_exception";
  return result;
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
  auto& headers = request.headers;
  headers.reserve(512);
  if (has_body) headers.add("Content-Type", "application/json");
  headers.add("User-Agent", "Takt");
  headers.add("webhook-id", id);
  headers.add("webhook-timestamp", std::to_string(now_s));
  headers.add("webhook-signature", keys.sign_also_retired(id, now_s, request.body, now));
  headers.add("Takt-Job", context.job.name);
  headers.add("Takt-Attempt", std::to_string(item.attempt));
  headers.add("Takt-Run", std::to_string(context.run_id));
  headers.add("traceparent", traceparent(context.trace_id, item));
  for (const auto& [name, value] : config.headers) headers.add(name, value);
  if (!config.bearer_env.empty()) {
    if (const char* token = std::getenv(config.bearer_env.c_str()); token != nullptr) {
      headers.add("Authorization", std::string("Bearer ").append(token, std::strcspn(token, "\r\n")));  // a file's last line end
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

JobCircuit HttpHandler::circuit(const JobDefinition& job) {
  const auto& config = std::get<HttpHandlerConfig>(job.handler);
  return {&circuits_, destination_of(config), config.circuit};
}

std::string HttpHandler::lacks(const JobDefinition& job) const {
  const auto& name = std::get<HttpHandlerConfig>(job.handler).bearer_env;
  if (name.empty()) return "";
  const char* token = std::getenv(name.c_str());
  if (token == nullptr) return "the environment variable " + name + " is not set";
  return std::strcspn(token, "\r\n") == 0 ? "the environment variable " + name + " is empty" : "";
}

void HttpHandler::run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  const auto& config = std::get<HttpHandlerConfig>(context.job.handler);
  const std::string destination = destination_of(config);
  const auto keys = keys_.webhooks(context.job.name);  // this job's own: its receiver can verify with it, and forge nothing
  Progress progress;
  progress.seconds.reserve(items.size());
  // Each request that ends begins the next, on the client's thread: no thread is woken for it. Nothing is thrown: what fails
  // here is its item's error, and the others go on.
  const std::function<void()> begin_next = [&] {
    while (true) {
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
      const auto ended = [&, index, pass](HttpResponse&& response) {
        results[index] = guarded([&] { return judge_reply(response, config.method, clock_.now(), keep_body_); });
        circuits_.end(destination, config.circuit, *pass, destination_works(response), results[index].error);
        crash_point("worker.mid_handler");
        begin_next();
        const std::scoped_lock lock(progress.mutex);  // held while notifying: run() must not return before this ends
        progress.seconds.push_back(response.seconds);
        progress.in_flight.erase(index);
        if (progress.in_flight.empty()) progress.finished.notify_one();
      };
      std::optional<std::uint64_t> id;
      auto failed = guarded([&] {
        id = client_.start(request_for(context, config, *keys, items[index]), ended);
        return HandlerResult{};
      });
      const std::scoped_lock lock(progress.mutex);
      const auto begun = progress.in_flight.find(index);
      if (id) {
        if (begun != progress.in_flight.end()) begun->second = *id;  // else done already
        return;
      }
      results[index] = std::move(failed);
      circuits_.end(destination, config.circuit, *pass, true);  // it says nothing of the destination
      progress.in_flight.erase(begun);
    }
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
