#pragma once
#include <limits>
#include <string>
#include <vector>

#include "core/config/job.h"
#include "worker/handlers/circuit_breaker.h"
#include "worker/item.h"
#include "worker/run_control.h"

namespace takt {

/// One run, as its handler sees it.
struct RunContext {
  const JobDefinition& job;
  std::int64_t run_id;
  std::string trace_id;  ///< 32 hexadecimal digits (W3C Trace Context)
  SteadyTime deadline;   ///< begin no item after this
  const RunControl& control;
};

/// How many items of a job its handler can begin now.
struct Readiness {
  int items = std::numeric_limits<int>::max();
  Duration pause{0};  ///< if none: for how long at least
};

/// The circuit that a job's items pass through.
struct JobCircuit {
  CircuitBreaker* breaker = nullptr;  ///< null: there is none
  std::string destination;
  CircuitConfig config;
};

/// Processes items. run() fills one result for each item and returns when all are settled one way or another: those
/// it did not begin stay `handed_back`. Called from many threads at once, once a run.
class Handler {
 public:
  virtual ~Handler() = default;
  [[nodiscard]] virtual Readiness readiness(const JobDefinition& /*job*/) { return {}; }
  [[nodiscard]] virtual JobCircuit circuit(const JobDefinition& /*job*/) { return {}; }
  /// What this process lacks to do the job's items, in words ("the environment variable X is not set"); empty: nothing. While it
  /// lacks something it claims none of them: a worker that does not will.
  [[nodiscard]] virtual std::string lacks(const JobDefinition& /*job*/) const { return ""; }
  virtual void run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) = 0;
};

}  // namespace takt
