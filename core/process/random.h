#pragma once
#include <cstdint>
#include <mutex>
#include <random>
#include <string>

namespace takt {

/// Where chance comes from; a constructor argument, so that a failing seed fails again.
class Random {
 public:
  virtual ~Random() = default;
  /// Uniform in [0, 1).
  virtual double uniform() = 0;
};

/// A seeded generator. Thread-safe. Not for secrets.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(std::uint64_t seed) : engine_(seed) {}
  double uniform() override;

 private:
  std::mutex mutex_;
  std::mt19937_64 engine_;  // guarded by mutex_
};

/// Cryptographically random bytes from OpenSSL. Throws std::runtime_error if the system has none.
std::string random_bytes(std::size_t count);
/// 32 lower-case hexadecimal digits, 128 random bits: an identity for a process, a tick, a message.
std::string random_id();
std::uint64_t random_seed();

}  // namespace takt
