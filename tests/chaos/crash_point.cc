// Stands in for core/crash_point.cc in the binary takt-crashing: kills the process at the point that TAKT_CRASH_AT names,
// as "name" or "name:n" for the nth time it is reached.
#include "core/crash_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace takt {

namespace {

struct Wanted {
  std::string name;
  long nth = 1;
};

Wanted wanted() {
  const char* text = std::getenv("TAKT_CRASH_AT");
  if (text == nullptr) return {};
  const std::string all = text;
  const auto colon = all.rfind(':');
  if (colon == std::string::npos) return {all, 1};
  return {all.substr(0, colon), std::atol(all.c_str() + colon + 1)};
}

}  // namespace

void crash_point(const char* name) noexcept {
  static const Wanted kWanted = wanted();
  static std::atomic<long> reached = 0;
  if (kWanted.name == name && ++reached == kWanted.nth) {
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
  }
}

}  // namespace takt
