#include "dispatcher/due_scan.h"

namespace takt {

namespace {

// Served by items_due (loose scan) and ticks_unfinished. Locks nothing but the rows it inserts.
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
    SELECT f.job_id, f.run_at, j.name, j.queue, CASE WHEN j.concurrency = 1 THEN 1 ELSE $3::integer END AS parallel
      FROM firsts f JOIN takt.jobs j ON j.id = f.job_id
     WHERE f.run_at <= now() AND NOT j.paused AND (j.held_until IS NULL OR j.held_until <= now()) AND j.removed_at IS NULL AND (j.definition->>'drain')::boolean),
  under_way AS (
    SELECT r.job_id, count(t.id) AS ticks, count(t.id) FILTER (WHERE t.source = 'more') AS more
      FROM ready r LEFT JOIN takt.ticks t
        ON t.job_id = r.job_id AND t.finished_at IS NULL
       AND (t.lease_until > now() OR t.created_at > now() - interval '10 s')
     GROUP BY r.job_id),
  made AS (
    INSERT INTO takt.ticks (id, job_id, source, due_at, published_at)
    SELECT 'due:' || gen_random_uuid(), r.job_id, 'due', r.run_at, now()
      FROM ready r JOIN under_way u USING (job_id)
     WHERE (u.ticks = 0 OR (u.more > 0 AND u.ticks < r.parallel))
       AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
    RETURNING id, job_id, due_at)
  SELECT m.id, r.name, r.queue, (extract(epoch FROM m.due_at) * 1000000)::bigint, NULL::bigint
    FROM made m JOIN ready r USING (job_id)
  UNION ALL
  SELECT NULL, NULL, NULL, NULL, (SELECT (extract(epoch FROM min(f.run_at) - now()) * 1000)::bigint FROM firsts f WHERE f.run_at > now())
)sql"};

}  // namespace

DueScanResult scan_due_items(Database& database, const Term& term, int parallel_ticks) {
  const auto rows = database.exec_retrying(kScan, Params::of(term.holder, term.number, parallel_ticks));
  DueScanResult result;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows.is_null(i, 0)) {
      result.ticks.push_back(
          {std::string(rows.text(i, 0)), std::string(rows.text(i, 1)), std::string(rows.text(i, 2)), "due", rows.time(i, 3), {}});
    } else if (!rows.is_null(i, 4)) {
      result.next_in = Duration(rows.integer(i, 4) + 1);
    }
  }
  return result;
}

}  // namespace takt
