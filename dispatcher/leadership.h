#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <tuple>

#include "core/db/database.h"
#include "core/db/database_clock.h"
#include "core/process/random.h"

namespace takt {

/// Proof of having been elected: every write of a leader names it, and PostgreSQL refuses it once the term is over.
struct Term {
  std::string holder;
  std::int64_t number = 0;
  static constexpr auto fields() { return std::tuple(&Term::holder, &Term::number); }
};

/// The lease row that decides who leads. Identity is an id that is random for each process, never a host name alone. One thread calls
/// try_lead(); leading() may be asked from any.
class Leadership {
 public:
  /// `holder`: of this process alone.
  Leadership(Database& database, Duration lease, const Clock& clock, std::string holder = random_id());

  /// Renews if leading, else takes the lease if it is free; each change of leader raises the term. True if leading.
  /// Throws as Database does; leading() turns false by itself when the lease runs out on this process's own clock.
  bool try_lead();
  /// Gives the lease up at once, so that a standby need not wait. Does nothing if not leading.
  void release();

  [[nodiscard]] bool leading() const;
  /// How long this process has led in unbroken contact with PostgreSQL: each renewal within a lease of the one before.
  /// Zero while not leading. Any thread.
  [[nodiscard]] Duration contact() const;
  [[nodiscard]] Term term() const { return {holder_, term_.load()}; }
  /// PostgreSQL's time as heard at the last renewal: what a leader signs with.
  [[nodiscard]] const DatabaseClock& database_clock() const { return database_clock_; }

 private:
  Database& database_;
  const Duration lease_;
  const Clock& clock_;
  const std::string holder_;
  DatabaseClock database_clock_;
  std::atomic<std::int64_t> term_{0};              // 0: not leading
  std::atomic<SteadyTime::rep> safe_until_{0};     // steady time until which the lease surely holds
  std::atomic<SteadyTime::rep> contact_since_{0};  // steady time of the first of the renewals without a gap
};

}  // namespace takt
