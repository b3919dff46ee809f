#include "dispatcher/gauges.h"

namespace takt {

namespace {

constexpr std::size_t kJobsAtOnce = 200;

// Served by items_due, at most 10,000 entries a job and state. Suspects (6) are due like any other.
constexpr Statement kJobs{"gauges_jobs", R"sql(
  SELECT j.id, j.name,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x),
         (SELECT coalesce(extract(epoch FROM now() - min(greatest(h.run_at, 'epoch'))), 0)
            FROM (VALUES (0), (6)) s(state)
            CROSS JOIN LATERAL (SELECT DISTINCT p.priority FROM (SELECT i.priority FROM takt.items i WHERE i.job_id = j.id
                                                    AND i.state = s.state ORDER BY i.priority LIMIT 10000) p) d
            CROSS JOIN LATERAL (SELECT i.run_at FROM takt.items i WHERE i.job_id = j.id AND i.state = s.state
                                 AND i.priority = d.priority AND i.run_at <= now() ORDER BY i.run_at LIMIT 1) h),
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x), u.ticks, u.oldest_s
    FROM takt.jobs j
    LEFT JOIN LATERAL takt.ticks_not_begun(j.id) u ON true
    WHERE j.removed_at IS NULL AND j.id > $1 ORDER BY j.id LIMIT $2
)sql"};

constexpr Statement kTotals{"gauges_totals", R"sql(
  SELECT (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE state = 'archived' LIMIT 10000) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL LIMIT 10000) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letter_outbox LIMIT 10000) x)
)sql"};

}  // namespace

LeaderGauges read_gauges(Database& database) {
  LeaderGauges gauges;
  std::int64_t last = 0;
  for (bool more = true; more;) {
    const auto jobs = database.exec(kJobs, Params::of(last, static_cast<std::int64_t>(kJobsAtOnce)));
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      gauges.jobs.push_back(
          {std::string(jobs.text(i, 1)), jobs.real(i, 2), jobs.real(i, 3), jobs.real(i, 4), jobs.real(i, 5), jobs.real(i, 6)});
      last = jobs.integer(i, 0);
    }
    more = jobs.size() == kJobsAtOnce;
  }
  const auto totals = database.exec(kTotals);
  gauges.dead_letters_open = totals.real(0, 0);
  gauges.outbox_ticks = totals.real(0, 1);
  gauges.outbox_dead_letters = totals.real(0, 2);
  return gauges;
}

}  // namespace takt
