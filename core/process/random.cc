#include "core/process/random.h"

#include <openssl/rand.h>

#include <cstring>
#include <stdexcept>

#include "core/text/text.h"

namespace takt {

double SeededRandom::uniform() {
  const std::scoped_lock lock(mutex_);
  return std::uniform_real_distribution<double>(0.0, 1.0)(engine_);
}

std::string random_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(count)) != 1) {
    throw std::runtime_error("the system gave no random bytes");
  }
  return bytes;
}

std::string random_id() { return to_hex(random_bytes(16)); }

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  std::memcpy(&seed, random_bytes(sizeof seed).data(), sizeof seed);
  return seed;
}

}  // namespace takt
