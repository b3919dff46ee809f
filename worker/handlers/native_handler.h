#pragma once
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "core/observe/metrics.h"
#include "worker/handler.h"

namespace takt {

/// An item as a native function sees it. Views are valid during the call.
struct NativeItem {
  std::string_view job;
  std::int64_t id;
  std::int64_t run_id;
  int attempt;               ///< from 1
  std::string_view key;      ///< empty: none
  std::string_view payload;  ///< JSON
};

/// Processes one item. Called from many threads at once. An exception ends the item `error` with its text. Long work
/// must end by itself: nothing interrupts it.
using NativeFunction = std::function<HandlerResult(const NativeItem&)>;
using NativeFunctions = std::map<std::string, NativeFunction>;

/// C++ functions of this binary, by name. `noop` is always there and ends every item `done`.
/// Items of a name that is not registered are another worker's.
class NativeHandler final : public Handler {
 public:
  NativeHandler(NativeFunctions functions, Metrics& metrics);
  [[nodiscard]] std::string lacks(const JobDefinition& job) const override;
  void run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) override;

 private:
  NativeFunctions functions_;
  Metrics& metrics_;
};

}  // namespace takt
