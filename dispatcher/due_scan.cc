#include "dispatcher/due_scan.h"

#include <algorithm>

#include "core/db/query.h"
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
#define TAKT_UNDER_WAY "t.finished_at IS NULL AND (t.lease_until > now() OR t.publish_at BETWEEN now() - interval '10 s' AND now())"

// The job `j`'s tick `t` is of a run that is at work for long, so that others need not wait for it.
#define TAKT_BUSY "j.concurrency <> 1 AND t.begun_at <= now() - " TAKT_PATIENCE

// More is due for the job than one run of it takes: then parallel_ticks is its limit.
#define TAKT_BACKLOG(job, batch) \
  "EXISTS (SELECT 1 FROM takt.items b WHERE b.state = 0 AND b.job_id = " job " AND b.run_at <= now() OFFSET " batch " LIMIT 1)"

// Served by items_due (loose scan), ticks_unfinished and ticks' primary key. Locks nothing. One statement, because each further one
// is a round trip that every wake-up waits for.
// A run_at may be any, infinite too, as an older version stored it: a tick's time is from 1970 on, or no worker takes it.
struct ScanRequest : Term {
  int parallel_ticks = 0;
  std::vector<std::int64_t> sent_jobs;
  std::vector<std::string> sent_ticks;
  std::vector<std::int64_t> looked_after;
  static constexpr auto fields() {
    return std::tuple_cat(Term::fields(), std::tuple(&ScanRequest::parallel_ticks, &ScanRequest::sent_jobs, &ScanRequest::sent_ticks,
                                                     &ScanRequest::looked_after));
  }
};
/// What is so for all jobs together.
struct ForAll {
  std::optional<Duration> next_in;     ///< until something becomes due, an item or a job whose runs are busy: at most a day
  bool unfinished = false;             ///< there is a tick that is not finished
  std::vector<std::string> not_begun;  ///< those of sent_ticks that no worker has begun
  std::vector<std::string> idle;       ///< names of those of looked_after that may be woken and have no tick under way but these
  static constexpr auto fields() {
    return std::tuple(Field("next_in", &ForAll::next_in), Field("unfinished", &ForAll::unfinished), Field("not_begun", &ForAll::not_begun),
                      Field("idle", &ForAll::idle));
  }
};
/// A job to be woken. What is so for all is in the first row alone; where nobody is to be woken, that row has no job.
struct ScanRow : ForAll {
  std::optional<std::int64_t> job_id;
  std::string job, queue;
  Timestamp due_at;   ///< of its first due item
  bool more = false;  ///< its runs report more
  static constexpr auto fields() {
    return std::tuple_cat(ForAll::fields(),
                          std::tuple(Field("job_id", &ScanRow::job_id), Field("name", &ScanRow::job), Field("queue", &ScanRow::queue),
                                     Field("due", &ScanRow::due_at), Field("more", &ScanRow::more)));
  }
};
constexpr Query<ScanRequest, ScanRow> kScan{"due_scan", R"sql(
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
      FROM begun b LEFT JOIN (SELECT job_id, count(*) AS ticks FROM not_begun GROUP BY job_id) n USING (job_id)),
  wakes AS (
    SELECT row_number() OVER () AS n, r.job_id, r.name, r.queue, (extract(epoch FROM greatest(r.run_at, 'epoch')) * 1000000)::bigint AS due, u.more > 0 AS more
      FROM ready r JOIN under_way u USING (job_id)
     WHERE (u.ticks = 0 OR (u.more > 0 AND u.ticks < r.parallel) OR (NOT r.exclusive AND u.busy_from <= now()
              AND (u.ticks < r.parallel OR NOT )sql" TAKT_BACKLOG("r.job_id", "r.batch_size") R"sql()))
       AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()))
  SELECT for_all.next_in, for_all.unfinished, CASE WHEN w.n > 1 THEN NULL ELSE for_all.not_begun END AS not_begun,
         CASE WHEN w.n > 1 THEN NULL ELSE for_all.idle END AS idle, w.job_id, w.name, w.queue, w.due, w.more
    FROM (SELECT (SELECT (extract(epoch FROM least(min(l.at), now() + interval '1 day') - now()) * 1000)::bigint
                    FROM (SELECT f.run_at FROM firsts f UNION ALL
                          SELECT u.busy_from FROM ready r JOIN under_way u USING (job_id)
                           WHERE NOT r.exclusive AND (u.more = 0 OR NOT )sql" TAKT_BACKLOG("r.job_id",
                                                                                           "r.batch_size") R"sql()) l(at)
                   WHERE l.at > now()) AS next_in,
                 EXISTS (SELECT 1 FROM takt.ticks t WHERE t.finished_at IS NULL) AS unfinished,
                 to_json(ARRAY(SELECT n.tick_id FROM not_begun n))::text AS not_begun,
                 to_json(ARRAY(SELECT j.name FROM takt.jobs j
                                WHERE j.id = ANY ($6::integer[])
                                  AND )sql" TAKT_MAY_BE_WOKEN R"sql(
                                  AND NOT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.job_id = j.id AND )sql" TAKT_UNDER_WAY
                                                                                                           R"sql()))::text AS idle) for_all
    LEFT JOIN wakes w ON true
   ORDER BY w.n
)sql"};

// One probe each of jobs, items_due and ticks_unfinished a job, and one of ticks' primary key a tick of $5.
struct LookRequest : Term {
  std::vector<std::string> jobs;
  std::vector<std::int64_t> sent_jobs;
  std::vector<std::string> sent_ticks;
  int parallel_ticks = 0;
  static constexpr auto fields() {
    return std::tuple_cat(Term::fields(),
                          std::tuple(&LookRequest::jobs, &LookRequest::sent_jobs, &LookRequest::sent_ticks, &LookRequest::parallel_ticks));
  }
};
struct LookRow {
  std::int64_t job_id = 0;
  std::string job, queue;
  Timestamp due_at;
  static constexpr auto fields() {
    return std::tuple(Field("id", &LookRow::job_id), Field("name", &LookRow::job), Field("queue", &LookRow::queue),
                      Field("due", &LookRow::due_at));
  }
};
constexpr Query<LookRequest, LookRow> kLook{"due_look", R"sql(
  SELECT j.id, j.name, j.queue, (extract(epoch FROM greatest(i.run_at, 'epoch')) * 1000000)::bigint AS due
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

WakeTick DueScan::wake_due(const std::string& job, std::int64_t job_id, const std::string& queue, Timestamp due) {
  const Woken woken{job_id, queue, clock_.steady(), false};
  if (woken_.contains(job) || woken_.size() < kMostLookedAfter) woken_[job] = woken;
  return wake(job, woken, due);
}

WakeTick DueScan::wake(const std::string& job, const Woken& woken, Timestamp due) {
  const auto missed = not_answered_.find(woken.job_id);
  WakeTick tick{{"due:" + random_id(), job, woken.queue, "due", due, {}}, missed != not_answered_.end()};
  const auto wait = kReplaceAfter * (1 << (missed == not_answered_.end() ? 0 : missed->second));
  sent_.push_back({woken.job_id, job, tick.id, clock_.steady() + std::min<SteadyTime::duration>(wait, kReplaceAfterAtMost)});
  return tick;
}

std::vector<WakeTick> DueScan::wake_idle(std::set<std::string>& jobs, Timestamp now) {
  std::vector<WakeTick> ticks;
  for (auto& [job, woken] : woken_) {
    if (!woken.idle || clock_.steady() - woken.at > kLooksAfter || jobs.erase(job) == 0) continue;
    woken.idle = false;
    woken.at = clock_.steady();
    ticks.push_back(wake(job, woken, now));
  }
  return ticks;
}

std::vector<WakeTick> DueScan::look_at(const Term& term, const std::set<std::string>& jobs) {
  const auto now = clock_.steady();
  std::erase_if(slow_, [now](const auto& entry) { return entry.second <= now; });
  std::set<std::string> quick;
  for (const auto& job : jobs) {
    if (!slow_.contains(job)) quick.insert(job);
  }
  if (now >= apart_until_) return look(term, quick);
  std::vector<WakeTick> ticks;
  std::size_t looks = 0;
  for (const auto& job : quick) {
    if (++looks > kMostApart) break;
    for (auto& tick : look(term, {job})) ticks.push_back(std::move(tick));
  }
  return ticks;
}

std::vector<WakeTick> DueScan::look(const Term& term, const std::set<std::string>& jobs) {
  if (jobs.empty()) return {};
  const auto began = clock_.steady();
  LookRequest request{term, {jobs.begin(), jobs.end()}, {}, {}, parallel_ticks_};
  for (const auto& sent : sent_) {
    if (!jobs.contains(sent.job)) continue;
    request.sent_jobs.push_back(sent.job_id);
    request.sent_ticks.push_back(sent.tick_id);
  }
  std::vector<WakeTick> ticks;
  for (const auto& row : query_retrying(database_, kLook, request)) ticks.push_back(wake_due(row.job, row.job_id, row.queue, row.due_at));
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
  ScanRequest request{term, parallel_ticks_, {}, {}, {}};
  for (const auto& sent : sent_) {
    request.sent_jobs.push_back(sent.job_id);
    request.sent_ticks.push_back(sent.tick_id);
  }
  std::erase_if(woken_, [now](const auto& entry) { return now - entry.second.at > kLooksAfter; });
  for (const auto& [job, woken] : woken_) request.looked_after.push_back(woken.job_id);
  const auto rows = query_retrying(database_, kScan, request);
  const ForAll& all = rows.at(0);
  Result result;
  if (all.next_in) result.next_in = *all.next_in + Duration(1);
  const std::set<std::string> not_begun(all.not_begun.begin(), all.not_begun.end());
  std::set<std::string> idle(all.idle.begin(), all.idle.end());
  std::erase_if(sent_, [&](const Sent& sent) {
    if (not_begun.contains(sent.tick_id)) return false;
    not_answered_.erase(sent.job_id);
    return true;
  });
  for (const auto& row : rows) {
    if (!row.job_id) continue;
    result.ticks.push_back(wake_due(row.job, *row.job_id, row.queue, row.due_at));
    result.growing = result.growing || row.more;
  }
  for (const auto& sent : sent_) idle.erase(sent.job);
  for (auto& [job, woken] : woken_) woken.idle = idle.contains(job);
  result.quiet = !all.unfinished && sent_.empty();
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
