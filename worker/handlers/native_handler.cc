#include "worker/handlers/native_handler.h"

#include "core/text/text.h"

namespace takt {

namespace {

HandlerResult guarded(const NativeFunction& function, const NativeItem& item) {
  HandlerResult result;
  try {
    return function(item);
  } catch (const std::exception& error) {
    result.error = error.what();
  } catch (...) {
    result.error = "the function threw something that is no std::exception";
  }
  result.item_class = ItemClass::error;
  result.reason = "native_exception";
  return result;
}

}  // namespace

NativeHandler::NativeHandler(NativeFunctions functions, Metrics& metrics) : functions_(std::move(functions)), metrics_(metrics) {
  functions_.emplace("noop", [](const NativeItem&) {
    HandlerResult result;
    result.item_class = ItemClass::done;
    return result;
  });
}

std::string NativeHandler::lacks(const JobDefinition& job) const {
  const auto& name = std::get<NativeHandlerConfig>(job.handler).name;
  return functions_.contains(name) ? "" : "it has no native handler named " + printable(name, 100);
}

void NativeHandler::run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  const auto& name = std::get<NativeHandlerConfig>(context.job.handler).name;
  const auto found = functions_.find(name);
  std::vector<double> seconds;
  seconds.reserve(items.size());
  auto began = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (found == functions_.end()) {
      results[i].item_class = ItemClass::blocked;
      results[i].reason = "native_unknown";
      results[i].error = lacks(context.job);
      continue;
    }
    if (context.control.stopped() || began > context.deadline) break;
    results[i] = guarded(found->second, {context.job.name, items[i].id, context.run_id, items[i].attempt, items[i].key, items[i].payload});
    const auto ended = std::chrono::steady_clock::now();
    results[i].seconds = seconds_between(began, ended);
    seconds.push_back(results[i].seconds);
    began = ended;
  }
  metrics_.handler_latencies(context.job.name, seconds);
}

}  // namespace takt
