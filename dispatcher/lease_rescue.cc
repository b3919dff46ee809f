#include "dispatcher/lease_rescue.h"

#include <algorithm>
#include <optional>

#include "core/observe/log.h"

namespace takt {

namespace {

struct RescueRequest : Term {
  int most = 0;
  static constexpr auto fields() { return std::tuple_cat(Term::fields(), std::tuple(&RescueRequest::most)); }
};
struct ForgottenRequest : Term {
  Duration after{};
  static constexpr auto fields() { return std::tuple_cat(Term::fields(), std::tuple(&ForgottenRequest::after)); }
};
struct LeaseOf {
  std::string tick_id;
  std::int64_t run_id = 0;
  static constexpr auto fields() { return std::tuple(Field("id", &LeaseOf::tick_id), Field("run_id", &LeaseOf::run_id)); }
};

// Served by ticks_leased (three times: what else the vanished worker has claimed is a lease, too) and failed_attempts_item; a lost
// run's items are in its row. A run that is settling at this moment holds its tick's row:
// SKIP LOCKED leaves it alone, and the settling of one that was taken here finds the tick no longer its own.
// An item that was tried alone is one of several suspects that are tried one after the other; but ordinary runs were beside it, so
// it dies one attempt later than one whose worker had claimed nothing else.
// What its worker has claimed beside, and is rescued later, loses the worker's name: it was in company, although it is the last then.
constexpr Query<RescueRequest, Rescued> kRescue{"lease_rescue", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  lost AS MATERIALIZED (
    SELECT t.id, t.run_id, t.begun_at,
           t.source IN ('due', 'more', 'alone', 'once')
             OR EXISTS (SELECT 1 FROM takt.jobs j WHERE j.id = t.job_id AND j.removed_at IS NOT NULL) AS ends,
           t.worker IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM takt.ticks o WHERE o.lease_until IS NOT NULL AND o.worker = t.worker AND o.id <> t.id) AS by_itself,
           t.source, t.worker
      FROM takt.ticks t, in_term
     WHERE t.lease_until < now()
     ORDER BY t.lease_until
     LIMIT $3
       FOR UPDATE OF t SKIP LOCKED),
  claimed AS MATERIALIZED (
    SELECT h.*, l.run_id, j.id AS job_id, j.name AS job, j.dedupe_window,
           cardinality(r.item_ids) = 1 AND (h.attempt >= j.max_attempts AND l.by_itself
             OR h.attempt > j.max_attempts AND l.source = 'alone') AS dies,
           EXISTS (SELECT 1 FROM takt.failed_attempts a WHERE a.item_id = h.id AND a.replay = h.replay
                      AND a.attempt = h.attempt - 1 AND a.class = 'lost') AS suspect
      FROM lost l JOIN takt.runs r ON r.id = l.run_id AND r.started_at = l.begun_at
      JOIN takt.jobs j ON j.id = r.job_id CROSS JOIN LATERAL takt.items_of(r) h),
  back AS (
    INSERT INTO takt.items (id, job_id, state, priority, replay, attempt, enqueued_at, key, payload)
    SELECT id, job_id, CASE WHEN suspect THEN 6 ELSE 0 END, priority, replay, attempt, enqueued_at, key, payload
      FROM claimed WHERE NOT dies),
  ended AS (
    INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_id, run_at,
                                  enqueued_at, key, payload)
    SELECT id, now(), job_id, 3, 'lost', priority, attempt, replay, run_id, run_at, enqueued_at, key, payload FROM claimed WHERE dies),
  failed AS (
    INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error, next_run_at)
    SELECT id, now(), job_id, replay, attempt, run_id, 'lost', 'worker_lost', 'the worker vanished before it settled the item',
           CASE WHEN NOT dies THEN now() END FROM claimed),
  keys AS (
    UPDATE takt.item_keys k SET expires_at = now() + h.dedupe_window
      FROM claimed h WHERE h.dies AND k.job_id = h.job_id AND k.key = h.key AND k.item_id = h.id),
  dead AS (
    INSERT INTO takt.dead_letter_outbox (id, body)
    SELECT takt.dead_letter_id(id, replay),
           takt.dead_letter(id, replay, job, 'max_attempts', 'the worker vanished before it settled the item', key, payload, attempt, priority)
      FROM claimed WHERE dies ON CONFLICT (id) DO NOTHING),
  runs AS (
    UPDATE takt.runs r
       SET status = 'failed', finished_at = now(), duration_ms = extract(epoch FROM now() - r.started_at) * 1000,
           scanned = cardinality(r.item_ids), dead = (SELECT count(*) FROM claimed h WHERE h.run_id = r.id AND h.dies),
           error = (SELECT count(*) FROM claimed h WHERE h.run_id = r.id AND NOT h.dies), item_ids = '{}', items = '{}', keys = NULL,
           errors = '[{"reason": "worker_lost", "error": "the worker vanished; its lease ran out"}]'
      FROM lost l WHERE r.id = l.run_id AND r.started_at = l.begun_at),
  company AS MATERIALIZED (
    SELECT o.id FROM lost l CROSS JOIN LATERAL (
      SELECT t.id FROM takt.ticks t
       WHERE t.lease_until IS NOT NULL AND t.worker = l.worker AND NOT EXISTS (SELECT 1 FROM lost s WHERE s.id = t.id)
         FOR UPDATE OF t SKIP LOCKED) o),
  in_company AS (UPDATE takt.ticks t SET worker = NULL FROM company c WHERE t.id = c.id),
  unlocked AS (DELETE FROM takt.job_locks k USING lost l WHERE k.run_id = l.run_id),
  ticks AS (
    UPDATE takt.ticks t
       SET lease_until = NULL, run_id = NULL, begun_at = NULL, items = NULL,
           finished_at = CASE WHEN l.ends THEN now() END, published_at = CASE WHEN l.ends THEN t.published_at END
      FROM lost l WHERE t.id = l.id)
  SELECT (SELECT count(*) FROM lost) AS runs, (SELECT count(*) FROM claimed WHERE NOT dies) AS returned,
         (SELECT count(*) FROM claimed WHERE dies) AS dead, (SELECT count(*) FROM claimed WHERE suspect AND NOT dies) AS suspect
)sql"};

// Served by ticks_leased. Its worker may still settle it.
constexpr Query<Term, LeaseOf> kSetAside{"lease_set_aside", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  first AS (
    SELECT t.id FROM takt.ticks t, in_term WHERE t.lease_until < now() ORDER BY t.lease_until LIMIT 1 FOR UPDATE OF t SKIP LOCKED)
  UPDATE takt.ticks t SET lease_until = now() + interval '1 min' FROM first f WHERE t.id = f.id
  RETURNING t.id, t.run_id
)sql"};

// Served by ticks_unfinished's partial condition; runs every few seconds on a handful of rows. And what a worker put off.
constexpr Query<ForgottenRequest, Count> kForgotten{"ticks_forgotten", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  old AS (
    SELECT t.id, t.source FROM takt.ticks t, in_term
     WHERE t.finished_at IS NULL AND t.lease_until IS NULL AND t.published_at IS NOT NULL
       AND (t.put_off_until < now() OR t.published_at < now() - $3 * interval '1 ms' AND t.publish_at < now() - $3 * interval '1 ms')
     LIMIT 1000 FOR UPDATE OF t SKIP LOCKED),
  again AS (
    UPDATE takt.ticks t SET published_at = NULL, put_off_until = NULL FROM old o
     WHERE t.id = o.id AND o.source NOT IN ('due', 'more', 'alone', 'once') RETURNING 1),
  forgotten AS (
    DELETE FROM takt.ticks t USING old o WHERE t.id = o.id AND o.source IN ('due', 'more', 'alone', 'once') RETURNING 1)
  SELECT (SELECT count(*) FROM again) + (SELECT count(*) FROM forgotten) AS count
)sql"};

/// The first `most` of them; none if they are too large together.
std::optional<Rescued> rescue_first(Database& database, const Term& term, int most) {
  try {
    return query_divisible(database, kRescue, {term, most}).at(0);
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    log_warn("leases too large to rescue together", {{"leases", most}, {"error", error.what()}});
    return std::nullopt;
  }
}

/// The first lease, which cannot be rescued even alone, so that the others can.
void set_aside(Database& database, const Term& term) {
  for (const auto& aside : query_retrying(database, kSetAside, term)) {
    log_error("lease not rescued", {{"tick", aside.tick_id},
                                    {"run", aside.run_id},
                                    {"then", "again in a minute; raise PostgreSQL's memory, or database.statement_timeout"}});
  }
}

}  // namespace

Rescued rescue_expired_leases(Database& database, const Term& term, int batch) {
  Rescued all;
  int most = batch;
  for (int left = batch; left > 0;) {
    most = std::min(most, left);
    const auto rescued = rescue_first(database, term, most);
    if (!rescued) {
      if (most == 1) {
        set_aside(database, term);
        --left;
      }
      most = std::max(1, most / 2);
      continue;
    }
    all.runs += rescued->runs;
    all.returned += rescued->returned;
    all.dead += rescued->dead;
    all.suspect += rescued->suspect;
    if (rescued->runs < most) break;
    left -= rescued->runs;
  }
  return all;
}

int republish_forgotten_ticks(Database& database, const Term& term, Duration after) {
  return static_cast<int>(query_retrying(database, kForgotten, {term, after}).at(0).count);
}

}  // namespace takt
