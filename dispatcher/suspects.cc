#include "dispatcher/suspects.h"

namespace takt {

namespace {

constexpr Statement kAny{"suspects_any", "SELECT EXISTS (SELECT 1 FROM takt.items WHERE state = 6)"};

// Reads the suspects through items_due, and unfinished ticks through ticks_unfinished: a handful, and only while there are
// suspects. An item's run_at is when the rescue made it a suspect, whatever it was before, so it is a time that a tick may bear.
// FOR SHARE on the leader's row keeps a successor from being elected between the check and the write.
constexpr Statement kNext{"suspects_next", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now() FOR SHARE),
  under_way AS MATERIALIZED (
    SELECT t.job_id, CASE WHEN t.lease_until IS NULL THEN t.created_at > now() - interval '10 s'
                          ELSE t.begun_at > now() - interval '30 s' END AS counts
      FROM takt.ticks t WHERE t.finished_at IS NULL AND t.source = 'alone'),
  next AS (
    SELECT i.id, i.job_id, i.run_at, j.name, j.queue
      FROM takt.items i JOIN takt.jobs j ON j.id = i.job_id
     WHERE i.state = 6 AND i.run_at <= now() AND NOT j.paused AND j.removed_at IS NULL
       AND (j.held_until IS NULL OR j.held_until <= now())
       AND NOT EXISTS (SELECT 1 FROM under_way u WHERE u.counts OR u.job_id = i.job_id)
     ORDER BY i.run_at, i.id LIMIT 1),
  stored AS (
    INSERT INTO takt.ticks (id, job_id, source, due_at)
    SELECT 'alone:' || n.id || '-' || nextval('takt.run_ids'), n.job_id, 'alone', n.run_at FROM next n, in_term
    RETURNING id, due_at)
  SELECT s.id, n.name, n.queue, (extract(epoch FROM s.due_at) * 1000000)::bigint FROM stored s, next n
)sql"};

}  // namespace

Suspects wake_next_suspect(Database& database, const Term& term) {
  Suspects suspects;
  suspects.any = database.exec(kAny).boolean(0, 0);
  if (!suspects.any) return suspects;
  const auto rows = database.exec_retrying(kNext, Params::of(term.holder, term.number));
  if (!rows.empty()) {
    suspects.tick =
        TickRow{std::string(rows.text(0, 0)), std::string(rows.text(0, 1)), std::string(rows.text(0, 2)), "alone", rows.time(0, 3), {}};
  }
  return suspects;
}

}  // namespace takt
