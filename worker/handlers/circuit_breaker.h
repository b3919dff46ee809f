#pragma once
#include <bitset>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/config/job.h"
#include "core/time.h"

namespace takt {

/// One circuit a destination. Closed: everything passes. It opens after `failures` failures in a row, or when at least
/// `rate` percent of the last 100 requests failed; open, nothing passes for `pause`. Then one request may try: if it
/// succeeds, two may be under way, then four and so on up to kWhole, where the circuit closes; if any fails, it is open
/// again, for twice as long up to `max_pause`. So a destination that comes back meets no stampede.
/// Thread-safe. Memory: about 200 bytes a destination; destinations are those of the operator's jobs.
class CircuitBreaker {
 public:
  static constexpr int kWhole = 64;
  static constexpr std::size_t kWindow = 100;

  enum class State { closed, open, probing };
  /// What may begin now: at most `items` requests; none before `pause` has passed.
  struct Allowance {
    State state = State::closed;
    int items = std::numeric_limits<int>::max();
    Duration pause{0};
  };
  /// A request that was let through; to be given back with its outcome.
  using Pass = std::uint64_t;

  explicit CircuitBreaker(const Clock& clock) : clock_(clock) {}

  [[nodiscard]] Allowance allowance(const std::string& destination, const CircuitConfig& config);
  /// nullopt: not now.
  std::optional<Pass> begin(const std::string& destination, const CircuitConfig& config);
  /// The state after it. A request that was under way when the circuit changed says nothing about the new state.
  State end(const std::string& destination, const CircuitConfig& config, Pass pass, bool succeeded);

 private:
  struct Circuit {
    State state = State::closed;
    Pass period = 0;  ///< rises with each change of state
    int in_a_row = 0;
    std::bitset<kWindow> failed;  ///< of the last `seen` requests, a ring
    std::size_t seen = 0, next = 0;
    SteadyTime open_until{};
    Duration pause{0};
    int limit = 0, in_flight = 0;  ///< while probing
  };
  static void count(Circuit& circuit, bool succeeded);
  void open(Circuit& circuit, const CircuitConfig& config);
  static void close(Circuit& circuit);

  const Clock& clock_;
  std::mutex mutex_;
  std::unordered_map<std::string, Circuit> circuits_;  // guarded by mutex_
};

/// Where a job's requests go: its URL without the query.
std::string destination_of(const HttpHandlerConfig& config);

}  // namespace takt
