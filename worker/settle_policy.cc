#include "worker/settle_policy.h"

#include <algorithm>

#include "worker/backoff.h"

namespace takt {

std::string_view to_string(ItemClass item_class) {
  switch (item_class) {
    case ItemClass::done: return "done";
    case ItemClass::noop: return "noop";
    case ItemClass::skipped: return "skipped";
    case ItemClass::blocked: return "blocked";
    case ItemClass::error: return "error";
    case ItemClass::fatal: return "fatal";
    case ItemClass::expired: return "expired";
    case ItemClass::handed_back: return "handed_back";
    case ItemClass::interrupted: return "interrupted";
  }
  return "?";
}

namespace {

/// Retry-After is honoured up to the policy's longest pause, so that a destination cannot park an item for ever.
Duration pause_after(const HandlerResult& result, const JobDefinition& job, int attempt, double uniform) {
  const Duration longest = job.backoff.list.empty() ? job.backoff.max : *std::max_element(job.backoff.list.begin(), job.backoff.list.end());
  if (result.retry_after) return std::clamp(*result.retry_after, Duration(0), longest);
  return backoff_pause(job.backoff, attempt, uniform);
}

}  // namespace

Settlement settle_item(const ClaimedItem& item, const HandlerResult& result, const JobDefinition& job, Duration age, double uniform,
                       int lost) {
  Settlement settlement{ItemState::pending, Duration(0), true, result.reason};
  switch (result.item_class) {
    case ItemClass::done:
    case ItemClass::noop: settlement.state = ItemState::done; return settlement;
    case ItemClass::blocked: settlement.state = ItemState::blocked; return settlement;
    case ItemClass::fatal: settlement.state = ItemState::dead; return settlement;
    case ItemClass::expired:
      settlement.state = ItemState::dead;
      settlement.spent = false;
      settlement.reason = "max_age";
      return settlement;
    case ItemClass::handed_back: settlement.spent = false; return settlement;
    case ItemClass::interrupted:
      // The request was sent, so the attempt counts, unless that alone would kill the item.
      settlement.spent = item.attempt < job.max_attempts;
      return settlement;
    case ItemClass::skipped:
      settlement.spent = false;
      settlement.delay = pause_after(result, job, item.attempt, uniform);
      break;
    case ItemClass::error:
      if (item.attempt - lost >= job.max_attempts) {
        settlement.state = ItemState::dead;
        settlement.reason = "max_attempts";
        return settlement;
      }
      settlement.delay = pause_after(result, job, item.attempt, uniform);
      break;
  }
  if (job.max_age && age + settlement.delay > *job.max_age) {
    settlement.state = ItemState::dead;
    settlement.reason = "max_age";
  }
  return settlement;
}

}  // namespace takt
