#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/time/time.h"

namespace takt {

enum class ItemState : std::int16_t { pending = 0, running = 1, done = 2, dead = 3, cancelled = 4, blocked = 5 };

/// How an attempt ended.
enum class ItemClass {
  done,
  noop,         ///< was applied already
  skipped,      ///< not now; no attempt spent
  blocked,      ///< an operator must look
  error,        ///< tried again
  fatal,        ///< dead at once
  expired,      ///< older than max_age; not tried
  handed_back,  ///< not tried: time budget or shutdown; no attempt spent
  interrupted,  ///< tried, and cut off by a shutdown
};
std::string_view to_string(ItemClass item_class);

/// An item under this run's lease.
struct ClaimedItem {
  std::int64_t id = 0;
  int attempt = 0;  ///< this one's number, from 1
  std::string key;
  std::string payload;  ///< JSON
  Duration age{};       ///< since it was enqueued, at the claim
  Duration overdue{};   ///< since run_at, at the claim
};

struct HandlerResult {
  ItemClass item_class = ItemClass::handed_back;
  std::string reason;  ///< a short code: http_500, timeout, …
  std::string error;   ///< in words, at most 1 KiB
  std::optional<Duration> retry_after;
  double seconds = 0;
  /// What an endpoint that does its own batch reported.
  std::int64_t processed = 0, failed = 0, skipped = 0;
  std::optional<std::int64_t> queue_depth;
};

}  // namespace takt
