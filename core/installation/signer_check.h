#pragma once
#include <mutex>
#include <string>

#include "core/db/database.h"
#include "core/tick/signing.h"

namespace takt {

/// Whether this process holds the key that the leading dispatcher signs ticks with, as the fingerprints in takt.services tell.
/// One that does not can tell none of its ticks from a forged one. Thread-safe.
class SignerCheck {
 public:
  enum class Verdict { unknown, holds, lacks };  ///< unknown: no dispatcher has led, or its row is gone

  SignerCheck(Database& database, const KeyRing& keys, const Clock& clock) : database_(database), keys_(keys), clock_(clock) {}

  /// Asks PostgreSQL. Throws as Database does.
  Verdict ask();
  /// What ask() heard last.
  [[nodiscard]] Verdict verdict() const;
  /// Whether a dispatcher held the lease then.
  [[nodiscard]] bool led() const;
  /// "lacks the key dbfc186b that dispatcher 6908f4245f95@web-1 signs ticks with; give it the same keys (docs/keys.md)"; empty unless it
  /// lacks it. `living`: only if that dispatcher leads at this moment.
  [[nodiscard]] std::string fault(bool living = false) const;

 private:
  Database& database_;
  const KeyRing& keys_;
  const Clock& clock_;
  mutable std::mutex mutex_;  // guards what follows
  Verdict verdict_ = Verdict::unknown;
  bool leads_ = true;  // until it is known otherwise
  std::string holder_, fingerprint_;
};

}  // namespace takt
