#pragma once
#include "core/config/job.h"

namespace takt {

/// The pause after failed attempt number `attempt` (from 1), before jitter. Pure; never negative, never overflows.
Duration backoff_ceiling(const Backoff& backoff, int attempt);

/// The pause itself: with full jitter uniform in [0, ceiling), `uniform` being in [0, 1).
Duration backoff_pause(const Backoff& backoff, int attempt, double uniform);

}  // namespace takt
