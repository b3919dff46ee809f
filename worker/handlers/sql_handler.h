#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "core/config/config.h"
#include "core/observe/metrics.h"
#include "worker/handler.h"
#include "worker/handlers/circuit_breaker.h"
#include "worker/handlers/sql_target.h"

namespace takt {

/// One statement an item, in a named database, as a role of its own. $1 payload, $2 key, $3 item id, $4 attempt. While a
/// database is away, items of its jobs stay handed back, and the jobs of others go on.
class SqlHandler final : public Handler {
 public:
  /// The URLs are read from the environment at first use.
  SqlHandler(std::map<std::string, NamedDatabase> databases, const Clock& clock, Metrics& metrics);
  ~SqlHandler() override;
  [[nodiscard]] Readiness readiness(const JobDefinition& job) override;
  [[nodiscard]] JobCircuit circuit(const JobDefinition& job) override;
  [[nodiscard]] std::string lacks(const JobDefinition& job) const override;
  [[nodiscard]] CircuitBreaker& circuits() { return circuits_; }
  void run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) override;

 private:
  SqlTarget* target(const std::string& name);
  SqlAnswer execute(SqlTarget& target, const std::string& destination, CircuitBreaker::Pass pass, const BoundStatement& bound,
                    const ClaimedItem& item);

  const std::map<std::string, NamedDatabase> configured_;
  const Clock& clock_;
  Metrics& metrics_;
  CircuitBreaker circuits_;  // away for one worker is not away for all: others' failures do not count here
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<SqlTarget>> targets_;  // guarded by mutex_; stay once they are made
};

}  // namespace takt
