#include "worker/handlers/circuit_breaker.h"

#include <algorithm>

namespace takt {

std::string destination_of(const HttpHandlerConfig& config) { return config.url.substr(0, config.url.find_first_of("?#")); }

void CircuitBreaker::count(Circuit& circuit, bool succeeded) {
  circuit.in_a_row = succeeded ? 0 : circuit.in_a_row + 1;
  circuit.failed[circuit.next] = !succeeded;
  circuit.next = (circuit.next + 1) % kWindow;
  circuit.seen = std::min(circuit.seen + 1, kWindow);
}

void CircuitBreaker::open(Circuit& circuit, const CircuitConfig& config) {
  circuit.pause = circuit.pause == Duration(0) ? config.pause : std::min(2 * circuit.pause, std::max(config.pause, config.max_pause));
  circuit.open_until = clock_.steady() + circuit.pause;
  circuit.state = State::open;
  ++circuit.period;
}

void CircuitBreaker::close(Circuit& circuit) {
  const Pass period = circuit.period + 1;
  circuit = Circuit{};
  circuit.period = period;
}

CircuitBreaker::Allowance CircuitBreaker::allowance(const std::string& destination, const CircuitConfig& config) {
  if (config.failures == 0) return {};
  const std::scoped_lock lock(mutex_);
  const auto found = circuits_.find(destination);
  if (found == circuits_.end()) return {};
  const Circuit& circuit = found->second;
  switch (circuit.state) {
    case State::closed: return {};
    case State::probing: return {State::probing, std::max(0, circuit.limit - circuit.in_flight), Duration(0)};
    case State::open: break;
  }
  const auto left = std::chrono::ceil<Duration>(circuit.open_until - clock_.steady());
  return left > Duration(0) ? Allowance{State::open, 0, left} : Allowance{State::open, 1, Duration(0)};
}

std::optional<CircuitBreaker::Pass> CircuitBreaker::begin(const std::string& destination, const CircuitConfig& config) {
  if (config.failures == 0) return 0;
  const std::scoped_lock lock(mutex_);
  auto& circuit = circuits_[destination];
  if (circuit.state == State::open) {
    if (clock_.steady() < circuit.open_until) return std::nullopt;
    circuit.state = State::probing;
    circuit.limit = 1;
    circuit.in_flight = 0;
    ++circuit.period;
  }
  if (circuit.state == State::probing) {
    if (circuit.in_flight >= circuit.limit) return std::nullopt;
    ++circuit.in_flight;
  }
  return circuit.period;
}

CircuitBreaker::State CircuitBreaker::end(const std::string& destination, const CircuitConfig& config, Pass pass, bool succeeded) {
  if (config.failures == 0) return State::closed;
  const std::scoped_lock lock(mutex_);
  auto& circuit = circuits_[destination];
  if (circuit.period != pass) return circuit.state;
  if (circuit.state == State::probing) {
    --circuit.in_flight;
    if (!succeeded) {
      open(circuit, config);
    } else if (circuit.limit *= 2; circuit.limit > kWhole) {
      close(circuit);
    }
    return circuit.state;
  }
  count(circuit, succeeded);
  const bool too_many = circuit.seen == kWindow && circuit.failed.count() * 100 >= kWindow * static_cast<std::size_t>(config.rate);
  if (circuit.in_a_row >= config.failures || (!succeeded && too_many)) open(circuit, config);
  return circuit.state;
}

}  // namespace takt
