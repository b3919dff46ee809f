#pragma once
#include <initializer_list>

#include "core/db/database.h"
#include "worker/handler.h"

namespace takt {

/// What the workers know together of destinations that fail, in takt.failing_destinations. One that works has no row there and
/// costs no statement. Thread-safe. While PostgreSQL is away, each worker judges alone.
class SharedCircuits {
 public:
  /// Longer names are each worker's own affair: an index entry has a bound.
  static constexpr std::size_t kNameBytes = 1000;

  SharedCircuits(Database& database, std::string worker) : database_(database), worker_(std::move(worker)) {}

  /// Tells the others what this process learned since it last did, and hears what they know of that destination. To be called
  /// before a run is settled: so an item meets no further attempt before the circuit is open. `took`: since the run began. True
  /// where the destination is left alone since then, or since a moment before, of which not every worker had heard. Throws nothing.
  /// The log names `job`: its URL may hold a secret.
  bool exchange(const std::string& job, const JobCircuit& circuit, Duration took);
  /// Hears of all of them; for the duty, on its own connection. Throws as Database does.
  void refresh(Database& vital, std::initializer_list<CircuitBreaker*> breakers);

 private:
  Database& database_;
  const std::string worker_;
};

}  // namespace takt
