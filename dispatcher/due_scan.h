#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/db/database.h"
#include "core/tick/tick_message.h"
#include "dispatcher/leadership.h"

namespace takt {

struct WakeTick : TickRow {
  bool again = false;  ///< no worker began the one before: whatever its way was, this one goes by another
};

/// Wakes jobs that have due items and not enough ticks under way. One statement, which writes nothing: a wake tick needs
/// no row before a worker begins it, since the scan repeats. It steps through items_due from job to job (a loose index
/// scan), so it costs one index probe per job and priority that has pending items, whatever the backlog; jobs without
/// pending items cost nothing.
///
/// A job gets one tick when none is under way, and up to `parallel_ticks` while a run has reported more to do. It also gets one
/// more for what is due while all its runs have been at work for 25 ms: however slow its handler, an item does not wait for
/// another's. That has no limit but the workers' places, `concurrency: 1`, and `parallel_ticks` where more is due than a run takes. A tick
/// counts as under way while its run's lease holds, and for 10 s after it was made: a lost one is replaced then, or at
/// once if its connection was lost. Where no worker begins any of a job's, each is replaced after twice as long as the one before,
/// at most 5 min: so that a night without workers leaves a hundred ticks a job to them, and not thousands. Those that no worker has begun
/// yet are known to this process alone (at most one a job and scan of the last 10 s); a new leader makes them once more, which costs a run
/// without items.
///
/// One thread's.
class DueScan {
 public:
  struct Result {
    std::vector<WakeTick> ticks;      ///< to be published at once
    std::optional<Duration> next_in;  ///< until the next item of any job is due
    bool growing = false;             ///< a job whose runs report more has one more: perhaps it may have yet another
    bool quiet = false;               ///< nothing is due, and no tick of any kind is unfinished
  };

  DueScan(Database& database, const Clock& clock, int parallel_ticks)
      : database_(database), clock_(clock), parallel_ticks_(parallel_ticks) {}

  Result run_once(const Term& term);
  /// Wake ticks for those of `jobs`, by name, for which an item is due and no tick is under way. Costs a third of a
  /// run_once(), which has to follow for what this leaves: other jobs, further ticks, an item behind one that is not due yet.
  std::vector<WakeTick> look_at(const Term& term, const std::set<std::string>& jobs);
  /// Wake ticks, without asking PostgreSQL, for those of `jobs` that were woken within the last second and, at the last
  /// run_once(), had no tick under way since: so at most one a job and run_once(). They are taken out of `jobs`. It may be one
  /// too many, where something else has begun to work for the job meanwhile: a run without items.
  /// `now`: by PostgreSQL's clock; when what was enqueued is due.
  std::vector<WakeTick> wake_idle(std::set<std::string>& jobs, Timestamp now);
  /// A tick was not published: the next look makes another.
  void not_sent(const std::string& tick_id);
  /// The connection that ticks were sent on is gone, and they perhaps with it: jobs still due get others.
  void forget_sent();

 private:
  struct Sent {
    std::int64_t job_id;
    std::string job;
    std::string tick_id;
    SteadyTime until;  ///< another is made then
  };

  struct Woken {
    std::int64_t job_id;
    std::string queue;
    SteadyTime at;
    bool idle;  ///< nothing was under way for it when last looked, and it may be woken
  };

  std::vector<WakeTick> look(const Term& term, const std::set<std::string>& jobs);
  /// A wake tick for a job of which an item is due since `due`; the job is looked after for a while.
  WakeTick wake_due(const std::string& job, std::int64_t job_id, const std::string& queue, Timestamp due);
  /// A wake tick, which is known to be sent from then on.
  WakeTick wake(const std::string& job, const Woken& woken, Timestamp due);

  Database& database_;
  const Clock& clock_;
  const int parallel_ticks_;
  std::vector<Sent> sent_;                    // not begun by a worker when last looked
  std::map<std::int64_t, int> not_answered_;  // ticks in a row that no worker began, by job
  std::map<std::string, Woken> woken_;        // lately, by name; at most kMostLookedAfter
  std::map<std::string, SteadyTime> slow_;    // jobs that were slow to look at, and until when they are left out
  SteadyTime apart_until_{};                  // until then each job is looked at by itself
};

}  // namespace takt
