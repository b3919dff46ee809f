#include "worker/backoff.h"

#include <algorithm>
#include <cmath>

namespace takt {

Duration backoff_ceiling(const Backoff& backoff, int attempt) {
  const auto n = static_cast<std::size_t>(std::max(attempt, 1));
  if (!backoff.list.empty()) return backoff.list[std::min(n, backoff.list.size()) - 1];
  const double pause = static_cast<double>(backoff.base.count()) * std::pow(backoff.factor, static_cast<double>(n - 1));
  const auto most = static_cast<double>(backoff.max.count());
  return Duration(static_cast<std::int64_t>(std::isfinite(pause) ? std::min(pause, most) : most));
}

Duration backoff_pause(const Backoff& backoff, int attempt, double uniform) {
  const Duration ceiling = backoff_ceiling(backoff, attempt);
  if (!backoff.full_jitter) return ceiling;
  return Duration(static_cast<std::int64_t>(static_cast<double>(ceiling.count()) * uniform));
}

}  // namespace takt
