#include "worker/handlers/circuit_breaker.h"

#include <algorithm>
#include <utility>

#include "core/text/text.h"

namespace takt {

std::string destination_of(const HttpHandlerConfig& config) { return config.url.substr(0, config.url.find_first_of("?#")); }
std::string destination_of(const SqlHandlerConfig& config) { return "database " + config.database; }

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
  circuit.doubted = false;
  ++circuit.period;
}

void CircuitBreaker::close(Circuit& circuit) {
  const Pass period = circuit.period + 1;
  circuit = Circuit{};
  circuit.period = period;
}

void CircuitBreaker::probe(Circuit& circuit) {
  circuit.state = State::probing;
  circuit.limit = 1;
  circuit.in_flight = 0;
  ++circuit.period;
}

CircuitBreaker::Allowance CircuitBreaker::allowance(const std::string& destination, const CircuitConfig& config) {
  if (config.failures == 0) return {};
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(destination);
  if (found == entries_.end()) return {};
  const Circuit& circuit = found->second.circuit;
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
  auto& circuit = entries_[destination].circuit;
  if (circuit.state == State::open) {
    if (clock_.steady() < circuit.open_until) return std::nullopt;
    probe(circuit);
  }
  if (circuit.state == State::probing) {
    if (circuit.in_flight >= circuit.limit) return std::nullopt;
    ++circuit.in_flight;
  }
  return circuit.period;
}

CircuitBreaker::State CircuitBreaker::end(const std::string& destination, const CircuitConfig& config, Pass pass, bool succeeded,
                                          std::string_view error) {
  if (config.failures == 0) return State::closed;
  const std::scoped_lock lock(mutex_);
  auto& entry = entries_[destination];
  auto& circuit = entry.circuit;
  if (circuit.period != pass) return circuit.state;
  entry.config = config;
  if (succeeded) {
    entry.untold = 0;
    ++entry.successes;
    entry.worked = clock_.steady();
    entry.works = entry.works || entry.failing;
  } else {
    ++entry.untold;
    entry.error = printable(error, kErrorBytes);
  }
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

CircuitBreaker::News CircuitBreaker::news(const std::string& destination) {
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(destination);
  if (found == entries_.end()) return {};
  auto& entry = found->second;
  const bool open = entry.circuit.state == State::open;
  const bool works_still = !open && entry.worked && clock_.steady() - *entry.worked < kWorksStill;
  const auto pause = open ? std::chrono::ceil<Duration>(entry.circuit.open_until - clock_.steady()) : entry.config.pause;
  const int failures = works_still ? 0 : std::exchange(entry.untold, 0);
  return {std::exchange(entry.works, false), failures, open, pause, entry.error, entry.successes};
}

void CircuitBreaker::told(const std::string& destination, const std::optional<Failing>& failing) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = entries_.find(destination); found != entries_.end())
    hear(found->second, failing.has_value(), failing && failing->open);
}

void CircuitBreaker::not_told(const std::string& destination, const News& news) {
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(destination);
  if (found == entries_.end()) return;
  auto& entry = found->second;
  entry.works = entry.works || (news.works && entry.failing);
  if (entry.successes == news.successes) entry.untold += news.failures;
}

void CircuitBreaker::hear(const std::vector<Failing>& failing) {
  std::unordered_map<std::string_view, const Failing*> open;
  for (const auto& one : failing) open[one.destination] = &one;
  const std::scoped_lock lock(mutex_);
  if (heeds_others_) {
    for (const auto& one : failing) entries_.try_emplace(one.destination);
  }
  for (auto& [destination, entry] : entries_) {
    const auto found = open.find(destination);
    hear(entry, found != open.end(), found != open.end() && found->second->open);
    if (found == open.end() || found->second->freed_at <= entry.freed_at) continue;
    entry.freed_at = found->second->freed_at;
    if (entry.circuit.state == State::open) entry.circuit.open_until = clock_.steady();
  }
}

void CircuitBreaker::hear(Entry& entry, bool failing, bool open) {
  auto& circuit = entry.circuit;
  const bool was_open = entry.open;
  entry.failing = failing;
  entry.open = open;
  if (!failing) entry.works = false;
  if (open && !was_open && heeds_others_ && circuit.state == State::closed) {
    if (circuit.in_a_row > 0) return this->open(circuit, entry.config);
    probe(circuit);
    circuit.doubted = true;
  } else if (was_open && !failing && circuit.state == State::probing && circuit.doubted) {
    close(circuit);
  } else if (was_open && !failing && circuit.state == State::open && (!entry.freed || clock_.steady() - *entry.freed >= circuit.pause)) {
    entry.freed = circuit.open_until = clock_.steady();
  }
}

}  // namespace takt
