#include "core/observe/log_throttle.h"

#include <utility>

namespace takt {

LogThrottle::LogThrottle(const Clock& clock, std::size_t kinds, Duration pause) : clock_(clock), pause_(pause), kinds_(kinds) {}

std::uint64_t LogThrottle::due(std::size_t kind) {
  const auto now = clock_.steady();
  const std::scoped_lock lock(mutex_);
  auto& state = kinds_.at(kind);
  ++state.events;
  if (state.last_line && now - *state.last_line < pause_) return 0;
  state.last_line = now;
  return std::exchange(state.events, 0);
}

}  // namespace takt
