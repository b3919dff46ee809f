#include "dispatcher/lease_rescue.h"

namespace takt {

namespace {

// Served by ticks_leased; items through claims.item_ids and their primary key. A run that is settling at this moment
// holds its tick's row: SKIP LOCKED leaves it alone. The fencing token in every condition makes the two exclusive.
constexpr Statement kRescue{"lease_rescue", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  lost AS (
    SELECT t.id, t.run_id, t.job_id, t.source, t.worker, t.begun_at
      FROM takt.ticks t, in_term
     WHERE t.lease_until < now()
     ORDER BY t.lease_until
     LIMIT $3
       FOR UPDATE OF t SKIP LOCKED),
  held AS (
    SELECT l.run_id, l.begun_at, u.item_id
      FROM lost l JOIN takt.claims c ON c.run_id = l.run_id CROSS JOIN LATERAL unnest(c.item_ids) AS u(item_id)),
  gone AS (
    DELETE FROM takt.items i USING held h, takt.jobs j
     WHERE i.id = h.item_id AND i.run_id = h.run_id AND i.state = 1 AND j.id = i.job_id AND i.attempt >= j.max_attempts
    RETURNING i.*, h.begun_at, j.name AS job, j.dedupe_window),
  back AS (
    UPDATE takt.items i SET state = 0, run_at = now(), run_id = NULL
      FROM held h, takt.jobs j
     WHERE i.id = h.item_id AND i.run_id = h.run_id AND i.state = 1 AND j.id = i.job_id AND i.attempt < j.max_attempts
    RETURNING i.id, i.job_id, i.replay, i.attempt, i.run_at, h.run_id, h.begun_at),
  history AS (
    INSERT INTO takt.finished_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_id, run_at,
                                     enqueued_at, key, payload)
    SELECT id, now(), job_id, 3, 'lost', priority, attempt, replay, run_id, run_at, enqueued_at, key, payload FROM gone),
  failed AS (
    INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error, next_run_at)
    SELECT id, now(), job_id, replay, attempt, run_id, 'lost', 'worker_lost', 'the worker vanished while it held the item', run_at FROM back
    UNION ALL
    SELECT id, now(), job_id, replay, attempt, run_id, 'lost', 'worker_lost', 'the worker vanished while it held the item', NULL FROM gone),
  keys AS (
    UPDATE takt.item_keys k SET expires_at = now() + g.dedupe_window
      FROM gone g WHERE g.key IS NOT NULL AND k.job_id = g.job_id AND k.key = g.key AND k.item_id = g.id),
  dead AS (
    INSERT INTO takt.dead_letter_outbox (id, body)
    SELECT takt.dead_letter_id(id, replay),
           takt.dead_letter(id, replay, job, 'max_attempts', 'the worker vanished while it held the item', key, payload, attempt, priority)
      FROM gone ON CONFLICT (id) DO NOTHING),
  counts AS (
    SELECT l.run_id, (SELECT count(*) FROM back b WHERE b.run_id = l.run_id) AS returned,
           (SELECT count(*) FROM gone g WHERE g.run_id = l.run_id) AS dead
      FROM lost l),
  runs AS (
    INSERT INTO takt.runs (id, started_at, job_id, tick_id, trigger, worker, status, scanned, error, dead, duration_ms, errors)
    SELECT l.run_id, l.begun_at, l.job_id, l.id,
           CASE l.source WHEN 'schedule' THEN 'schedule' WHEN 'external' THEN 'external'
                         WHEN 'due' THEN 'due' WHEN 'more' THEN 'due' ELSE 'manual' END,
           coalesce(l.worker, ''), 'failed', c.returned + c.dead, c.returned, c.dead,
           extract(epoch FROM now() - l.begun_at) * 1000,
           '[{"reason": "worker_lost", "error": "the worker vanished; its lease ran out"}]'
      FROM lost l JOIN counts c USING (run_id)),
  unlocked AS (DELETE FROM takt.job_locks k USING lost l WHERE k.run_id = l.run_id),
  unclaimed AS (DELETE FROM takt.claims c USING lost l WHERE c.run_id = l.run_id),
  ticks AS (
    UPDATE takt.ticks t
       SET lease_until = NULL, run_id = NULL, begun_at = NULL, items = NULL,
           finished_at = CASE WHEN l.source IN ('due', 'more', 'once') THEN now() END,
           published_at = CASE WHEN l.source IN ('due', 'more', 'once') THEN t.published_at END
      FROM lost l WHERE t.id = l.id)
  SELECT (SELECT count(*) FROM lost), (SELECT count(*) FROM back), (SELECT count(*) FROM gone)
)sql"};

// Served by ticks_unfinished's partial condition; runs every few seconds on a handful of rows.
constexpr Statement kForgotten{"ticks_forgotten", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  old AS (
    SELECT t.id, t.source FROM takt.ticks t, in_term
     WHERE t.finished_at IS NULL AND t.lease_until IS NULL AND t.published_at < now() - $3 * interval '1 ms'
       AND t.created_at < now() - $3 * interval '1 ms'
     LIMIT 1000 FOR UPDATE OF t SKIP LOCKED),
  again AS (
    UPDATE takt.ticks t SET published_at = NULL FROM old o
     WHERE t.id = o.id AND o.source NOT IN ('due', 'more', 'once') RETURNING 1),
  forgotten AS (
    DELETE FROM takt.ticks t USING old o WHERE t.id = o.id AND o.source IN ('due', 'more', 'once') RETURNING 1)
  SELECT (SELECT count(*) FROM again) + (SELECT count(*) FROM forgotten)
)sql"};

}  // namespace

Rescued rescue_expired_leases(Database& database, const Term& term, int batch) {
  const auto rows = database.exec_retrying(kRescue, Params::of(term.holder, term.number, batch));
  return {static_cast<int>(rows.integer(0, 0)), static_cast<int>(rows.integer(0, 1)), static_cast<int>(rows.integer(0, 2))};
}

int republish_forgotten_ticks(Database& database, const Term& term, Duration after) {
  return static_cast<int>(database.exec_retrying(kForgotten, Params::of(term.holder, term.number, after)).integer(0, 0));
}

}  // namespace takt
