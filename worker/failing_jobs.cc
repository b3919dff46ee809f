#include "worker/failing_jobs.h"

#include <algorithm>

#include "core/text/text.h"

namespace takt {

namespace {

enum class Says { works, fails, nothing };

Says says(ItemClass item_class) {
  switch (item_class) {
    case ItemClass::done:
    case ItemClass::noop: return Says::works;
    case ItemClass::error:
    case ItemClass::fatal:
    case ItemClass::blocked: return Says::fails;
    default: return Says::nothing;
  }
}

}  // namespace

void FailingJobs::note(const RunRecord& run) {
  const bool failed = std::any_of(run.results.begin(), run.results.end(), [](const auto& r) { return says(r.item_class) == Says::fails; });
  if (!failed && !any_) return;
  const std::scoped_lock lock(mutex_);
  const auto& job = run.job->definition.name;
  for (std::size_t i = 0; i < run.results.size(); ++i) {
    const auto& result = run.results[i];
    switch (says(result.item_class)) {
      case Says::works: jobs_.erase(job); break;
      case Says::fails: {
        if (jobs_.size() >= kMost && !jobs_.contains(job)) break;
        auto& entry = jobs_[job];
        if (entry.attempts == 0) entry.first = clock_.steady();
        entry.error = printable(result.error.empty() ? result.reason : result.error, kErrorBytes);
        const auto put_off = i < run.settlements.size() ? run.settlements[i].delay : Duration(0);
        entry.until = std::max(entry.until, clock_.steady() + put_off + kForgotten);
        ++entry.attempts;
        entry.died = entry.died || (i < run.settlements.size() && run.settlements[i].state == ItemState::dead);
        break;
      }
      case Says::nothing: break;
    }
  }
  any_ = !jobs_.empty();
}

std::vector<FailingJob> FailingJobs::list() {
  const std::scoped_lock lock(mutex_);
  std::erase_if(jobs_, [&](const auto& entry) { return clock_.steady() >= entry.second.until; });
  any_ = !jobs_.empty();
  std::vector<FailingJob> list;
  for (const auto& [job, entry] : jobs_) {
    const auto since = clock_.steady() - entry.first;
    if (entry.attempts >= kInARow || entry.died) {
      list.push_back({job, entry.attempts, entry.error, std::nullopt});
    } else if (since >= kFewAfter) {
      list.push_back({job, entry.attempts, entry.error, std::chrono::duration<double>(since).count()});
    }
  }
  std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.attempts > b.attempts; });
  return list;
}

}  // namespace takt
