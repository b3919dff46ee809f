// Stands in for core/process/crash_point.cc in the binary takt-crashing: kills the process at the point that TAKT_CRASH_AT names,
// as "name" or "name:n" for the nth time it is reached. TAKT_LEAK_AT ("name:bytes") loses so many bytes each time
// that its point is reached: the memory check of the random run must see it.
#include "core/process/crash_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace takt {

namespace {

struct Wanted {
  std::string name;
  long number = 1;
};

Wanted wanted(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return {};
  const std::string all = text;
  const auto colon = all.rfind(':');
  if (colon == std::string::npos) return {all, 1};
  return {all.substr(0, colon), std::atol(all.c_str() + colon + 1)};
}

}  // namespace

void crash_point(const char* name) noexcept {
  static const Wanted kCrash = wanted("TAKT_CRASH_AT"), kLeak = wanted("TAKT_LEAK_AT");
  static std::atomic<long> reached = 0;
  if (kLeak.name == name) {
    [[maybe_unused]] char* volatile lost = new char[static_cast<std::size_t>(kLeak.number)];
  }
  if (kCrash.name == name && ++reached == kCrash.number) {
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
  }
}

}  // namespace takt
