#include "worker/settle.h"

#include <map>
#include <nlohmann/json.hpp>

namespace takt {

namespace {

constexpr std::size_t kMaxRunErrors = 10;

// Items by primary key, guarded by run_id and state: an item that was rescued meanwhile has another token and is not
// touched. The tick's row decides whether the run is recorded, so a repeat records nothing.
constexpr Statement kSettle{"settle_run", R"sql(
  WITH outcome AS (
    SELECT * FROM unnest($4::bigint[], $5::smallint[], $6::text[], $7::bigint[], $8::integer[], $9::text[], $10::text[], $11::real[], $30::text[])
      AS o(id, state, class, delay_ms, unspent, reason, error, duration_ms, dead_reason)),
  kept AS (
    UPDATE takt.items i
       SET state = o.state, run_at = now() + o.delay_ms * interval '1 ms', attempt = i.attempt - o.unspent, run_id = NULL
      FROM outcome o
     WHERE i.id = o.id AND o.state IN (0, 5) AND i.run_id = $1 AND i.state = 1
    RETURNING i.id, i.job_id, i.replay, i.attempt, i.run_at, i.state, o.class, o.reason, o.error, o.duration_ms, o.unspent),
  gone AS (
    DELETE FROM takt.items i USING outcome o
     WHERE i.id = o.id AND o.state IN (2, 3) AND i.run_id = $1 AND i.state = 1
    RETURNING i.id, i.job_id, i.replay, i.attempt - o.unspent AS attempts, i.priority, i.run_at, i.enqueued_at, i.key, i.payload,
              o.state AS final, o.class, o.reason, o.error, o.duration_ms, o.unspent, o.dead_reason),
  history AS (
    INSERT INTO takt.finished_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_id, run_at,
                                     enqueued_at, duration_ms, key, payload)
    SELECT id, now(), job_id, final, class, priority, attempts, replay, $1, run_at, enqueued_at, duration_ms, key, payload FROM gone),
  failed AS (
    INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error, duration_ms, next_run_at)
    SELECT id, now(), job_id, replay, attempt, $1, class, reason, error, duration_ms, CASE WHEN state = 0 THEN run_at END
      FROM kept WHERE unspent = 0
    UNION ALL
    SELECT id, now(), job_id, replay, attempts, $1, class, reason, error, duration_ms, NULL FROM gone WHERE final = 3 AND unspent = 0),
  keys AS (
    UPDATE takt.item_keys k SET expires_at = now() + $12 * interval '1 ms'
      FROM gone g WHERE g.key IS NOT NULL AND k.job_id = g.job_id AND k.key = g.key AND k.item_id = g.id),
  dead AS (
    INSERT INTO takt.dead_letter_outbox (id, body)
    SELECT takt.dead_letter_id(id, replay), takt.dead_letter(id, replay, $13, dead_reason,
             CASE WHEN reason IN (dead_reason, '') THEN error ELSE reason || ': ' || error END, key, payload, attempts, priority)
      FROM gone WHERE final = 3
    ON CONFLICT (id) DO NOTHING),
  unlocked AS (DELETE FROM takt.job_locks WHERE job_id = $3 AND run_id = $1),
  unclaimed AS (DELETE FROM takt.claims WHERE run_id = $1),
  tick AS (
    UPDATE takt.ticks SET finished_at = now(), lease_until = NULL, items = NULL
     WHERE id = $2 AND run_id = $1 AND finished_at IS NULL
    RETURNING begun_at, source),
  left_over AS (
    SELECT count(*) AS n FROM (
      SELECT 1 FROM takt.items WHERE job_id = $3 AND state = 0 AND run_at <= now() LIMIT 100) x),
  more AS (
    INSERT INTO takt.ticks (id, job_id, source, due_at, published_at)
    SELECT $14, $3, 'more', now(), now() FROM tick, left_over
     WHERE left_over.n > 0 AND $14 <> '' AND NOT (SELECT j.paused FROM takt.jobs j WHERE j.id = $3)
    RETURNING 1),
  run AS (
    INSERT INTO takt.runs (id, started_at, job_id, tick_id, trigger, worker, status, dry_run, scanned, done, noop, skipped,
                           blocked, error, dead, handed_back, remaining, oldest_age_s, duration_ms, errors, reported)
    SELECT $1, tick.begun_at, $3, $2,
           CASE tick.source WHEN 'schedule' THEN 'schedule' WHEN 'external' THEN 'external'
                            WHEN 'due' THEN 'due' WHEN 'more' THEN 'due' ELSE 'manual' END,
           $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, left_over.n, $26, $27, $28::jsonb, $29::jsonb
      FROM tick, left_over)
  SELECT (SELECT count(*) FROM tick), (SELECT count(*) FROM kept) + (SELECT count(*) FROM gone),
         (SELECT n FROM left_over), (SELECT count(*) FROM more)
)sql"};

struct Counts {
  int done = 0, noop = 0, skipped = 0, blocked = 0, error = 0, dead = 0, handed_back = 0;
};

Counts count(const RunRecord& run) {
  Counts counts;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    if (run.settlements[i].state == ItemState::dead) {
      ++counts.dead;
      continue;
    }
    switch (run.results[i].item_class) {
      case ItemClass::done: ++counts.done; break;
      case ItemClass::noop: ++counts.noop; break;
      case ItemClass::skipped: ++counts.skipped; break;
      case ItemClass::blocked: ++counts.blocked; break;
      case ItemClass::handed_back:
      case ItemClass::interrupted: ++counts.handed_back; break;
      case ItemClass::error:
      case ItemClass::fatal:
      case ItemClass::expired: ++counts.error; break;
    }
  }
  return counts;
}

std::optional<std::string> first_errors(const RunRecord& run) {
  auto errors = nlohmann::json::array();
  for (std::size_t i = 0; i < run.items.size() && errors.size() < kMaxRunErrors; ++i) {
    if (run.results[i].reason.empty() && run.settlements[i].reason.empty()) continue;
    const auto& reason = run.results[i].reason.empty() ? run.settlements[i].reason : run.results[i].reason;
    errors.push_back({{"item", run.items[i].id}, {"reason", reason}, {"error", run.results[i].error}});
  }
  if (errors.empty()) return std::nullopt;
  return errors.dump();
}

std::optional<std::string> reported(const RunRecord& run) {
  std::int64_t processed = 0, failed = 0, skipped = 0;
  std::optional<std::int64_t> depth;
  for (const auto& result : run.results) {
    processed += result.processed;
    failed += result.failed;
    skipped += result.skipped;
    if (result.queue_depth) depth = result.queue_depth;
  }
  if (processed == 0 && failed == 0 && skipped == 0 && !depth) return std::nullopt;
  nlohmann::json sums{{"processed", processed}, {"failed", failed}, {"skipped", skipped}};
  if (depth) sums["queueDepth"] = *depth;
  return sums.dump();
}

}  // namespace

std::string_view to_string(RunStatus status) {
  switch (status) {
    case RunStatus::completed: return "completed";
    case RunStatus::locked: return "locked";
    case RunStatus::failed: return "failed";
  }
  return "?";
}

Settled settle_run(Database& database, const RunRecord& run) {
  std::vector<std::int64_t> ids, states, delays, unspent;
  std::vector<std::string> classes, reasons, errors, durations, dead_reasons;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto& settlement = run.settlements[i];
    ids.push_back(run.items[i].id);
    states.push_back(static_cast<std::int64_t>(settlement.state));
    classes.emplace_back(to_string(run.results[i].item_class));
    delays.push_back(settlement.delay.count());
    unspent.push_back(settlement.spent ? 0 : 1);
    reasons.push_back(run.results[i].reason);
    errors.push_back(run.results[i].error);
    dead_reasons.push_back(settlement.reason);
    durations.push_back(std::to_string(run.results[i].seconds * 1000));
  }
  const auto counts = count(run);
  const auto& job = run.job->definition;
  const auto rows = database.exec_retrying(
      kSettle, Params::of(run.run_id, run.tick_id, run.job->id, ids, states, classes, delays, unspent, reasons, errors, durations,
                          job.dedupe_window, job.name, run.next_tick_id, run.worker, to_string(run.status), run.dry_run, run.scanned,
                          counts.done, counts.noop, counts.skipped, counts.blocked, counts.error, counts.dead, counts.handed_back,
                          run.oldest_age_s, run.duration_ms, first_errors(run), reported(run), dead_reasons));
  return {rows.integer(0, 0) > 0, static_cast<int>(rows.integer(0, 1)), static_cast<int>(rows.integer(0, 2)), rows.integer(0, 3) > 0};
}

}  // namespace takt
