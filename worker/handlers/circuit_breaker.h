#pragma once
#include <bitset>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/config/job.h"
#include "core/time/time.h"

namespace takt {

/// One circuit a destination. Closed: everything passes. It opens after `failures` failures in a row, or when at least
/// `rate` percent of the last 100 requests failed; open, nothing passes for `pause`. Then one request may try: if it
/// succeeds, two may be under way, then four and so on up to kWhole, where the circuit closes; if any fails, it is open
/// again, for twice as long up to `max_pause`. So a destination that comes back meets no stampede.
///
/// The judgment is shared (SharedCircuits): news() is what others are to be told, hear() what they told. Failures in a row are
/// counted over all workers. When they are too many, a worker that saw one of them opens its circuit; one that saw none sends
/// one request first, since what fails may be the others' network. When the destination works for one worker, the others
/// try it at once: each at most once a pause, since what fails may be their own. When somebody says so, they try it at once.
/// Thread-safe. Memory: about 500 bytes a destination; destinations are those of the operator's jobs.
class CircuitBreaker {
 public:
  static constexpr int kWhole = 64;
  static constexpr std::size_t kWindow = 100;
  static constexpr std::size_t kErrorBytes = 200;  ///< of the last failure are kept
  static constexpr Duration kWorksStill = std::chrono::seconds(1);

  enum class State { closed, open, probing };
  /// What may begin now: at most `items` requests; none before `pause` has passed.
  struct Allowance {
    State state = State::closed;
    int items = std::numeric_limits<int>::max();
    Duration pause{0};
  };
  /// A request that was let through; to be given back with its outcome.
  using Pass = std::uint64_t;

  /// What this process learned of a destination since it told the others.
  struct News {
    bool works = false;  ///< it answered, after others were told that it fails
    int failures = 0;    ///< in a row, after that
    bool open = false;
    Duration pause{0};            ///< until a request may try, or how long that would be if it opened now
    std::string error;            ///< of the last failure
    std::uint64_t successes = 0;  ///< so far
    [[nodiscard]] bool any() const { return works || failures > 0; }
  };
  /// What the workers know together of one that fails.
  struct Failing {
    std::string destination;
    bool open = false;          ///< too many in a row, or a worker's circuit is open
    std::int64_t freed_at = 0;  ///< when somebody last had it tried before its time, Unix microseconds; 0: nobody
  };

  /// `heeds_others`: whether others' failures count here.
  explicit CircuitBreaker(const Clock& clock, bool heeds_others = true) : clock_(clock), heeds_others_(heeds_others) {}

  [[nodiscard]] Allowance allowance(const std::string& destination, const CircuitConfig& config);
  /// nullopt: not now.
  std::optional<Pass> begin(const std::string& destination, const CircuitConfig& config);
  /// The state after it. A request that was under way when the circuit changed says nothing about the new state.
  State end(const std::string& destination, const CircuitConfig& config, Pass pass, bool succeeded, std::string_view error = {});

  /// What is to be told now, each failure once. Of a destination that worked here within kWorksStill failures are no news: the row is
  /// broken.
  [[nodiscard]] News news(const std::string& destination);
  /// The last news has been told; `failing`: what the others know now, nullopt: nothing against it.
  void told(const std::string& destination, const std::optional<Failing>& failing);
  /// It could not be told, and is news again.
  void not_told(const std::string& destination, const News& news);
  /// All that fail; those not among them do not.
  void hear(const std::vector<Failing>& failing);

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
    bool doubted = false;          ///< probing for others' failures, without one of its own
  };
  /// Outlives the circuit's changes.
  struct Entry {
    Circuit circuit;
    CircuitConfig config;
    bool failing = false, open = false;  ///< as the workers know together
    bool works = false;                  ///< since they were told that it fails
    int untold = 0;                      ///< failures in a row
    std::uint64_t successes = 0;
    std::optional<SteadyTime> worked;  ///< last
    std::string error;
    std::optional<SteadyTime> freed;  ///< when another's success let it try before its time
    std::int64_t freed_at = 0;        ///< when somebody last did, as it was heard
  };
  static void count(Circuit& circuit, bool succeeded);
  static void probe(Circuit& circuit);
  void hear(Entry& entry, bool failing, bool open);
  void open(Circuit& circuit, const CircuitConfig& config);
  static void close(Circuit& circuit);

  const Clock& clock_;
  const bool heeds_others_;
  std::mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;  // guarded by mutex_
};

/// Where a job's items go, as takt.destination_of() says, too: its URL without the query, or "database NAME".
std::string destination_of(const HttpHandlerConfig& config);
std::string destination_of(const SqlHandlerConfig& config);

}  // namespace takt
