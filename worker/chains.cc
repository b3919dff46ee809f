#include "worker/chains.h"

#include <algorithm>

namespace takt {

Settled Chains::settle_and_claim(const RunRecord& run, const ClaimRequest& next, Claim& claim) {
  if (!goes_on_in_place(run, next) || next.batch_size >= settings_.items) return takt::settle_and_claim(database_, run, next, claim);
  Waiting own({run, next, claim, {}});
  std::unique_lock lock(mutex_);
  const auto at = jobs_.try_emplace(run.job->id).first;
  at->second.waiting.push_back(&own);
  own.woken.wait_for(lock, settings_.patience, [&] { return own.taken || may_go(at->second); });
  if (!own.taken) lead(lock, at, own);
  own.woken.wait(lock, [&] { return own.done; });  // ends with its leader's statement, which has a timeout
  if (own.error) std::rethrow_exception(own.error);
  return own.settled;
}

bool Chains::may_go(const Job& job) const {
  int items = 0;
  for (const auto* waiting : job.waiting) items += waiting->next.batch_size;
  return static_cast<int>(job.waiting.size()) >= job.under_way || items >= settings_.items;
}

/// Takes out of the waiting the leader and those that can share its statement, in the order of their runs, which is also the
/// heartbeat's: two statements lock the same ticks in the same order.
std::vector<Chains::Waiting*> Chains::company(Job& job, Waiting& leader) const {
  std::vector<Waiting*> group;
  int items = leader.next.batch_size;
  const auto joins = [&](Waiting* other) {
    if (other != &leader) {
      const bool alike =
          other->run.job == leader.run.job && &other->next.job == &leader.next.job && other->next.batch_size == leader.next.batch_size;
      if (!alike || items + other->next.batch_size > settings_.items) return false;
      items += other->next.batch_size;
    }
    other->taken = true;
    group.push_back(other);
    return true;
  };
  std::erase_if(job.waiting, joins);
  std::sort(group.begin(), group.end(), [](const Waiting* a, const Waiting* b) { return a->run.run_id < b->run.run_id; });
  return group;
}

void Chains::lead(std::unique_lock<std::mutex>& lock, Jobs::iterator at, Waiting& leader) {
  auto& job = at->second;
  const auto group = company(job, leader);
  job.under_way += static_cast<int>(group.size());
  lock.unlock();
  std::exception_ptr error;
  try {
    takt::settle_and_claim(database_, {group.begin(), group.end()});
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  job.under_way -= static_cast<int>(group.size());
  for (auto* member : group) {
    member->error = error;
    member->done = true;
    if (member != &leader) member->woken.notify_one();
  }
  if (!job.waiting.empty()) {
    job.waiting.front()->woken.notify_one();
  } else if (job.under_way == 0) {
    jobs_.erase(at);
  }
}

}  // namespace takt
