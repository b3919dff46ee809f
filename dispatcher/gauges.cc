#include "dispatcher/gauges.h"

#include "core/db/query.h"

namespace takt {

namespace {

constexpr std::int64_t kJobsAtOnce = 200;

struct JobsAfter {
  std::int64_t id = 0;
  std::int64_t most = kJobsAtOnce;
  static constexpr auto fields() { return std::tuple(&JobsAfter::id, &JobsAfter::most); }
};
struct JobBacklog {
  std::int64_t id = 0;
  std::string job;
  std::int64_t due = 0;
  double oldest_s = 0;
  std::int64_t blocked = 0, ticks = 0;
  double oldest_tick_s = 0;
  static constexpr auto fields() {
    return std::tuple(Field("id", &JobBacklog::id), Field("name", &JobBacklog::job), Field("due", &JobBacklog::due),
                      Field("oldest_s", &JobBacklog::oldest_s), Field("blocked", &JobBacklog::blocked), Field("ticks", &JobBacklog::ticks),
                      Field("oldest_tick_s", &JobBacklog::oldest_tick_s));
  }
};
struct Totals {
  std::int64_t dead_letters = 0, outbox_ticks = 0, outbox_dead_letters = 0;
  static constexpr auto fields() {
    return std::tuple(Field("dead_letters", &Totals::dead_letters), Field("outbox_ticks", &Totals::outbox_ticks),
                      Field("outbox_dead_letters", &Totals::outbox_dead_letters));
  }
};

// Served by items_due, at most 10,000 entries a job and state. Suspects (6) are due like any other.
constexpr Query<JobsAfter, JobBacklog> kJobs{"gauges_jobs", R"sql(
  SELECT j.id, j.name,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x) AS due,
         (SELECT coalesce(extract(epoch FROM now() - min(greatest(h.run_at, 'epoch'))), 0)::float8
            FROM (VALUES (0), (6)) s(state)
            CROSS JOIN LATERAL (SELECT DISTINCT p.priority FROM (SELECT i.priority FROM takt.items i WHERE i.job_id = j.id
                                                    AND i.state = s.state ORDER BY i.priority LIMIT 10000) p) d
            CROSS JOIN LATERAL (SELECT i.run_at FROM takt.items i WHERE i.job_id = j.id AND i.state = s.state
                                 AND i.priority = d.priority AND i.run_at <= now() ORDER BY i.run_at LIMIT 1) h) AS oldest_s,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x) AS blocked, u.ticks,
         u.oldest_s AS oldest_tick_s
    FROM takt.jobs j
    LEFT JOIN LATERAL takt.ticks_not_begun(j.id) u ON true
    WHERE j.removed_at IS NULL AND j.id > $1 ORDER BY j.id LIMIT $2
)sql"};

constexpr Query<NoRequest, Totals> kTotals{"gauges_totals", R"sql(
  SELECT (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE state = 'archived' LIMIT 10000) x) AS dead_letters,
         (SELECT count(*) FROM (SELECT 1 FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL LIMIT 10000) x) AS outbox_ticks,
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letter_outbox LIMIT 10000) x) AS outbox_dead_letters
)sql"};

}  // namespace

LeaderGauges read_gauges(Database& database) {
  LeaderGauges gauges;
  std::int64_t last = 0;
  for (bool more = true; more;) {
    const auto jobs = query(database, kJobs, {last});
    for (const auto& job : jobs) {
      gauges.jobs.push_back({job.job, static_cast<double>(job.due), job.oldest_s, static_cast<double>(job.blocked),
                             static_cast<double>(job.ticks), job.oldest_tick_s});
      last = job.id;
    }
    more = jobs.size() == kJobsAtOnce;
  }
  const auto totals = query(database, kTotals).at(0);
  gauges.dead_letters_open = static_cast<double>(totals.dead_letters);
  gauges.outbox_ticks = static_cast<double>(totals.outbox_ticks);
  gauges.outbox_dead_letters = static_cast<double>(totals.outbox_dead_letters);
  return gauges;
}

}  // namespace takt
