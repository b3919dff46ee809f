#include "dispatcher/due_scan.h"

#include <algorithm>

#include "core/process/random.h"

namespace takt {

namespace {

constexpr Duration kReplaceAfter = std::chrono::seconds(10), kReplaceAfterAtMost = std::chrono::minutes(5);
constexpr int kMostDoublings = 5;
/// How long after it was last woken a job is looked after, and how many are at most.
constexpr Duration kLooksAfter = std::chrono::seconds(1);
constexpr std::size_t kMostLookedAfter = 64;
/// A run takes what is due when it claims, and looks again when it has handled that: an item that becomes due meanwhile waits so
/// long for it, and no longer. Most runs are over by then, and a job that is enqueued for without a pause gets 40 ticks a second.
#define TAKT_PATIENCE "interval '25 ms'"
/// A look at jobs that were notified of is slow where one of them has many dead entries, since a long transaction holds back vacuum.
/// Then each is looked at by itself for a while, and a slow one for a tenth of the time: the others wait for none of that.
constexpr Duration kSlowLook = std::chrono::milliseconds(5);
constexpr Duration kApartFor = std::chrono::seconds(5);
constexpr int kLookShare = 9;
constexpr std::size_t kMostApart = 20;  // in one round; the scan of everything finds the others

// Nothing hinders that the job `j` is woken for due items.
#define TAKT_MAY_BE_WOKEN \
  "NOT j.paused AND (j.held_until IS NULL OR j.held_until <= now()) AND j.removed_at IS NULL AND (j.definition->>'drain')::boolean"
// The tick `t` is under way, as far as its row tells; served by ticks_unfinished.
#define TAKT_UNDER_WAY "t.finished_at IS NULL AND (t.lease_until > now() OR t.created_at BETWEEN now() - interval '10 s' AND now())"

// The job `j`'s tick `t` is of a run that is at work for long, so that others need not wait for it.
#define TAKT_BUSY "j.concurrency <> 1 AND t.begun_at <= now() - " TAKT_PATIENCE

// More is due for the job than one run of it takes: then parallel_ticks is its limit.
#define TAKT_BACKLOG(job, batch) \
  "EXISTS (SELECT 1 FROM takt.items b WHERE b.state = 0 AND b.job_id = " job " AND b.run_at <= now() OFFSET " batch " LIMIT 1)"

// Served by items_due (loose scan), ticks_unfinished and ticks' primary key. Locks nothing. One statement, because each further one
// is a round trip that every wake-up waits for. Its rows are of four kinds, told by their first column:
//   wake       a job to be woken: its number, name, queue, when its first item was due, and whether its runs report more
//   next       one row: in how many ms something becomes due next (an item, or a job whose runs are busy; NULL: nothing within a
//              day), and whether any tick is unfinished
//   not_begun  a tick of $5 that no worker has begun
//   idle       a job of $6 that may be woken, and has no tick under way but those
// A run_at may be any, infinite too, as an older version stored it: a tick's time is from 1970 on, or no worker takes it.
enum Column : std::size_t { kKind, kJob, kName, kQueue, kDue, kNextIn, kTick, kFlag };
constexpr Statement kScan{"due_scan", R"sql(
  WITH RECURSIVE heads AS (
    (SELECT i.job_id, i.priority, i.run_at FROM takt.items i WHERE i.state = 0
      ORDER BY i.job_id, i.priority, i.run_at LIMIT 1)
    UNION ALL
    SELECT n.job_id, n.priority, n.run_at
      FROM heads h CROSS JOIN LATERAL (
        SELECT i.job_id, i.priority, i.run_at FROM takt.items i
         WHERE i.state = 0 AND (i.job_id, i.priority) > (h.job_id, h.priority)
         ORDER BY i.job_id, i.priority, i.run_at LIMIT 1) n),
  firsts AS (
    SELECT h.job_id, min(h.run_at) AS run_at FROM heads h GROUP BY h.job_id),
  ready AS (
    SELECT f.job_id, f.run_at, j.name, j.queue, j.batch_size, j.concurrency = 1 AS exclusive,
           CASE WHEN j.concurrency = 1 THEN 1 ELSE $3::integer END AS parallel
      FROM firsts f JOIN takt.jobs j ON j.id = f.job_id
     WHERE f.run_at <= now() AND )sql" TAKT_MAY_BE_WOKEN R"sql(),
  not_begun AS MATERIALIZED (
    SELECT s.job_id, s.tick_id FROM unnest($4::integer[], $5::text[]) AS s(job_id, tick_id) JOIN takt.jobs j ON j.id = s.job_id
     WHERE NOT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.id = s.tick_id)
       AND (j.held_until IS NULL OR j.held_until < now() - interval '2 s')),  -- a worker that holds a job has declined its tick
  begun AS (
    SELECT r.job_id, count(t.id) AS ticks, count(t.id) FILTER (WHERE t.source = 'more') AS more,
           max(coalesce(t.begun_at, 'infinity')) FILTER (WHERE t.id IS NOT NULL) + )sql" TAKT_PATIENCE R"sql( AS busy_from
      FROM ready r LEFT JOIN takt.ticks t
        ON t.job_id = r.job_id AND )sql" TAKT_UNDER_WAY R"sql(
     GROUP BY r.job_id),
  under_way AS (
    SELECT b.job_id, b.ticks + coalesce(n.ticks, 0) AS ticks, b.more, CASE WHEN n.ticks > 0 THEN 'infinity' ELSE b.busy_from END AS busy_from
      FROM begun b LEFT JOIN (SELECT job_id, count(*) AS ticks FROM not_begun GROUP BY job_id) n USING (job_id))
  SELECT 'wake' AS kind, r.job_id, r.name, r.queue, (extract(epoch FROM greatest(r.run_at, 'epoch')) * 1000000)::bigint AS due,
         NULL::bigint AS next_in, NULL::text AS tick, u.more > 0 AS flag
    FROM ready r JOIN under_way u USING (job_id)
   WHERE (u.ticks = 0 OR (u.more > 0 AND u.ticks < r.parallel) OR (NOT r.exclusive AND u.busy_from <= now()
            AND (u.ticks < r.parallel OR NOT )sql" TAKT_BACKLOG("r.job_id", "r.batch_size") R"sql()))
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
  UNION ALL
  SELECT 'next', NULL, NULL, NULL, NULL,
         (SELECT (extract(epoch FROM least(min(l.at), now() + interval '1 day') - now()) * 1000)::bigint
            FROM (SELECT f.run_at FROM firsts f UNION ALL
                  SELECT u.busy_from FROM ready r JOIN under_way u USING (job_id)
                   WHERE NOT r.exclusive AND (u.more = 0 OR NOT )sql" TAKT_BACKLOG("r.job_id", "r.batch_size") R"sql()) l(at)
           WHERE l.at > now()),
         NULL, EXISTS (SELECT 1 FROM takt.ticks t WHERE t.finished_at IS NULL)
  UNION ALL
  SELECT 'not_begun', NULL, NULL, NULL, NULL, NULL, n.tick_id, NULL FROM not_begun n
  UNION ALL
  SELECT 'idle', NULL, j.name, NULL, NULL, NULL, NULL, NULL FROM takt.jobs j
   WHERE j.id = ANY ($6::integer[])
     AND )sql" TAKT_MAY_BE_WOKEN R"sql(
     AND NOT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.job_id = j.id AND )sql" TAKT_UNDER_WAY R"sql()
)sql"};

// One probe each of jobs, items_due and ticks_unfinished a job, and one of ticks' primary key a tick of $5.
constexpr Statement kLook{"due_look", R"sql(
  SELECT 'wake' AS kind, j.id, j.name, j.queue, (extract(epoch FROM greatest(i.run_at, 'epoch')) * 1000000)::bigint
    FROM takt.jobs j CROSS JOIN LATERAL (
      SELECT i.run_at FROM takt.items i WHERE i.state = 0 AND i.job_id = j.id ORDER BY i.priority, i.run_at LIMIT 1) i
   WHERE j.name = ANY ($3::text[]) AND i.run_at <= now()
     AND )sql" TAKT_MAY_BE_WOKEN R"sql(
     AND NOT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.job_id = j.id AND )sql" TAKT_UNDER_WAY R"sql( AND ()sql" TAKT_BUSY
                                      R"sql() IS NOT TRUE)
     AND ((SELECT count(*) FROM takt.ticks t WHERE t.job_id = j.id AND )sql" TAKT_UNDER_WAY R"sql() < $6
          OR NOT )sql" TAKT_BACKLOG("j.id", "j.batch_size") R"sql()
     AND NOT EXISTS (SELECT 1 FROM unnest($4::integer[], $5::text[]) AS s(job_id, tick_id)
                      WHERE s.job_id = j.id AND NOT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.id = s.tick_id))
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
)sql"};

}  // namespace

TickRow DueScan::wake(const Rows& rows, std::size_t i, std::vector<Sent>& sent) {
  const std::string job(rows.text(i, kName));
  const Woken woken{rows.integer(i, kJob), std::string(rows.text(i, kQueue)), clock_.steady(), false};
  if (woken_.contains(job) || woken_.size() < kMostLookedAfter) woken_[job] = woken;
  return wake(job, woken, rows.time(i, kDue), sent);
}

TickRow DueScan::wake(const std::string& job, const Woken& woken, Timestamp due, std::vector<Sent>& sent) {
  TickRow tick{"due:" + random_id(), job, woken.queue, "due", due, {}};
  const auto missed = not_answered_.find(woken.job_id);
  const auto wait = kReplaceAfter * (1 << (missed == not_answered_.end() ? 0 : missed->second));
  sent.push_back({woken.job_id, job, tick.id, clock_.steady() + std::min<SteadyTime::duration>(wait, kReplaceAfterAtMost)});
  return tick;
}

std::vector<TickRow> DueScan::wake_idle(std::set<std::string>& jobs, Timestamp now) {
  std::vector<TickRow> ticks;
  for (auto& [job, woken] : woken_) {
    if (!woken.idle || clock_.steady() - woken.at > kLooksAfter || jobs.erase(job) == 0) continue;
    woken.idle = false;
    woken.at = clock_.steady();
    ticks.push_back(wake(job, woken, now, sent_));
  }
  return ticks;
}

std::vector<TickRow> DueScan::look_at(const Term& term, const std::set<std::string>& jobs) {
  const auto now = clock_.steady();
  std::erase_if(slow_, [now](const auto& entry) { return entry.second <= now; });
  std::set<std::string> quick;
  for (const auto& job : jobs) {
    if (!slow_.contains(job)) quick.insert(job);
  }
  if (now >= apart_until_) return look(term, quick);
  std::vector<TickRow> ticks;
  std::size_t looks = 0;
  for (const auto& job : quick) {
    if (++looks > kMostApart) break;
    for (auto& tick : look(term, {job})) ticks.push_back(std::move(tick));
  }
  return ticks;
}

std::vector<TickRow> DueScan::look(const Term& term, const std::set<std::string>& jobs) {
  if (jobs.empty()) return {};
  const auto began = clock_.steady();
  std::vector<std::string> names(jobs.begin(), jobs.end()), sent_ticks;
  std::vector<std::int64_t> sent_jobs;
  for (const auto& sent : sent_) {
    if (!jobs.contains(sent.job)) continue;
    sent_jobs.push_back(sent.job_id);
    sent_ticks.push_back(sent.tick_id);
  }
  const auto rows = database_.exec_retrying(kLook, Params::of(term.holder, term.number, names, sent_jobs, sent_ticks, parallel_ticks_));
  std::vector<TickRow> ticks;
  for (std::size_t i = 0; i < rows.size(); ++i) ticks.push_back(wake(rows, i, sent_));
  if (const auto ended = clock_.steady(); ended - began >= kSlowLook) {
    if (jobs.size() > 1) {
      apart_until_ = ended + kApartFor;
    } else {
      slow_[*jobs.begin()] = ended + std::min<SteadyTime::duration>((ended - began) * kLookShare, kApartFor);
    }
  }
  return ticks;
}

DueScan::Result DueScan::run_once(const Term& term) {
  const auto now = clock_.steady();
  std::erase_if(sent_, [&](const Sent& sent) {
    if (now <= sent.until) return false;
    auto& missed = not_answered_[sent.job_id];
    missed = std::min(missed + 1, kMostDoublings);
    return true;
  });
  std::vector<std::int64_t> jobs;
  std::vector<std::string> ticks;
  for (const auto& sent : sent_) {
    jobs.push_back(sent.job_id);
    ticks.push_back(sent.tick_id);
  }
  std::erase_if(woken_, [now](const auto& entry) { return now - entry.second.at > kLooksAfter; });
  std::vector<std::int64_t> looked_after;
  for (const auto& [job, woken] : woken_) looked_after.push_back(woken.job_id);
  const auto rows = database_.exec_retrying(kScan, Params::of(term.holder, term.number, parallel_ticks_, jobs, ticks, looked_after));
  Result result;
  std::set<std::string, std::less<>> not_begun, idle;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto kind = rows.text(i, kKind);
    if (kind == "next") {
      if (!rows.is_null(i, kNextIn)) result.next_in = Duration(rows.integer(i, kNextIn) + 1);
      result.quiet = !rows.boolean(i, kFlag);
    } else if (kind == "not_begun") {
      not_begun.emplace(rows.text(i, kTick));
    } else if (kind == "idle") {
      idle.emplace(rows.text(i, kName));
    }
  }
  std::erase_if(sent_, [&](const Sent& sent) {
    if (not_begun.contains(sent.tick_id)) return false;
    not_answered_.erase(sent.job_id);
    return true;
  });
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows.text(i, kKind) != "wake") continue;
    result.ticks.push_back(wake(rows, i, sent_));
    result.growing = result.growing || rows.boolean(i, kFlag);
  }
  for (const auto& sent : sent_) idle.erase(sent.job);
  for (auto& [job, woken] : woken_) woken.idle = idle.contains(job);
  result.quiet = result.quiet && sent_.empty();
  return result;
}

void DueScan::forget_sent() {
  sent_.clear();
  not_answered_.clear();
}

void DueScan::not_sent(const std::string& tick_id) {
  std::erase_if(sent_, [&](const Sent& sent) { return sent.tick_id == tick_id; });
}

}  // namespace takt
