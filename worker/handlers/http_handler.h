#pragma once
#include "core/http/client.h"
#include "core/observe/metrics.h"
#include "core/tick/signing.h"
#include "worker/handler.h"
#include "worker/handlers/circuit_breaker.h"

namespace takt {

/// One signed request an item, at most `parallel` of a run in flight; the thread that calls run() waits. While the
/// destination's circuit is open, items stay handed back.
class HttpHandler final : public Handler {
 public:
  HttpHandler(HttpClient& client, const KeyRing& keys, const Clock& clock, Metrics& metrics, bool keep_body)
      : client_(client), keys_(keys), clock_(clock), metrics_(metrics), keep_body_(keep_body), circuits_(clock) {}
  [[nodiscard]] Readiness readiness(const JobDefinition& job) override;
  [[nodiscard]] JobCircuit circuit(const JobDefinition& job) override;
  [[nodiscard]] std::string lacks(const JobDefinition& job) const override;
  [[nodiscard]] CircuitBreaker& circuits() { return circuits_; }
  void run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) override;

 private:
  [[nodiscard]] HttpRequest request_for(const RunContext& context, const HttpHandlerConfig& config, const SigningKeys& keys,
                                        const ClaimedItem& item) const;

  HttpClient& client_;
  const KeyRing& keys_;
  const Clock& clock_;
  Metrics& metrics_;
  bool keep_body_;
  CircuitBreaker circuits_;
};

}  // namespace takt
