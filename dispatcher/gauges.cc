#include "dispatcher/gauges.h"

namespace takt {

namespace {

// Served by items_due, at most 10,000 entries a job.
constexpr Statement kJobs{"gauges_jobs", R"sql(
  SELECT j.name,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 0 AND i.run_at <= now() LIMIT 10000) x),
         (SELECT coalesce(extract(epoch FROM now() - min(greatest(h.run_at, 'epoch'))), 0)
            FROM (SELECT DISTINCT p.priority FROM (SELECT i.priority FROM takt.items i WHERE i.job_id = j.id AND i.state = 0
                                                    ORDER BY i.priority LIMIT 10000) p) d
            CROSS JOIN LATERAL (SELECT i.run_at FROM takt.items i WHERE i.job_id = j.id AND i.state = 0 AND i.priority = d.priority
                                 AND i.run_at <= now() ORDER BY i.run_at LIMIT 1) h),
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x)
    FROM takt.jobs j WHERE j.removed_at IS NULL
)sql"};

constexpr Statement kTotals{"gauges_totals", R"sql(
  SELECT (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE state = 'archived' LIMIT 10000) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL LIMIT 10000) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letter_outbox LIMIT 10000) x)
)sql"};

}  // namespace

void refresh_gauges(Database& database, Metrics& metrics) {
  const auto jobs = database.exec(kJobs);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    metrics.job_backlog(jobs.text(i, 0), jobs.real(i, 1), jobs.real(i, 2));
    metrics.job_blocked(jobs.text(i, 0), jobs.real(i, 3));
  }
  const auto totals = database.exec(kTotals);
  metrics.dead_letters_open(totals.real(0, 0));
  metrics.outbox(totals.real(0, 1), totals.real(0, 2));
}

}  // namespace takt
