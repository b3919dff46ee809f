#include "worker/claim.h"

namespace takt {

namespace {

// The ledger entry and the items commit together. The items' function runs only for the row that RETURNING gives, so
// a tick that was accepted before stores nothing.
constexpr Statement kAccept{"accept_inline_items", R"sql(
  WITH tick AS (
    INSERT INTO takt.ticks AS t (id, job_id, source, due_at, published_at, accepted_at)
    VALUES ($1, $2, $3, $4, now(), now())
    ON CONFLICT (id) DO UPDATE SET accepted_at = now(), published_at = coalesce(t.published_at, now()), items = NULL
     WHERE t.accepted_at IS NULL AND t.finished_at IS NULL
    RETURNING t.job_id)
  SELECT count(*) FROM tick CROSS JOIN LATERAL
    takt.store_items(tick.job_id, $5::jsonb[], $6::text[], $7::timestamptz[], $8::integer[]) s
)sql"};

// Served by ticks' primary key and items_due (job, priority, run_at, id). Locks the tick's row, the job's lock row if
// it is exclusive, and only the items it returns. A tick whose run is still under its lease is not begun again; the
// same run_id finds its own claim again after a lost connection.
constexpr Statement kClaim{"claim_batch", R"sql(
  WITH tick AS (
    INSERT INTO takt.ticks AS t (id, job_id, source, due_at, published_at, run_id, worker, lease_until, begun_at)
    VALUES ($1, $2, $3, $4, now(), $5, $6, now() + $7 * interval '1 ms', now())
    ON CONFLICT (id) DO UPDATE
       SET run_id = excluded.run_id, worker = excluded.worker, lease_until = excluded.lease_until, begun_at = now(),
           published_at = coalesce(t.published_at, now())
     WHERE t.finished_at IS NULL AND (t.lease_until IS NULL OR t.lease_until < now())
    RETURNING t.id, t.source),
  locked AS (
    INSERT INTO takt.job_locks AS l (job_id, run_id, until)
    SELECT $2, $5, now() + $7 * interval '1 ms' FROM tick WHERE $8::integer = 1
    ON CONFLICT (job_id) DO UPDATE SET run_id = excluded.run_id, until = excluded.until WHERE l.until < now()
    RETURNING 1),
  due AS (
    SELECT i.id FROM takt.items i
     WHERE i.job_id = $2 AND i.state = 0 AND i.run_at <= now()
       AND EXISTS (SELECT 1 FROM tick) AND ($8::integer <> 1 OR EXISTS (SELECT 1 FROM locked))
       AND NOT (SELECT j.paused FROM takt.jobs j WHERE j.id = $2)
     ORDER BY i.priority, i.run_at, i.id
     LIMIT $9
       FOR UPDATE SKIP LOCKED),
  claimed AS (
    UPDATE takt.items i SET state = 1, attempt = i.attempt + 1, run_id = $5
      FROM due WHERE i.id = due.id
    RETURNING i.id, i.attempt, i.key, i.payload, i.run_at, i.enqueued_at, i.priority),
  kept AS (
    INSERT INTO takt.claims (run_id, item_ids) SELECT $5, array_agg(id) FROM claimed HAVING count(*) > 0)
  SELECT (SELECT source FROM tick), (SELECT count(*) FROM locked),
         c.id, c.attempt, c.key, c.payload::text,
         (extract(epoch FROM now() - c.enqueued_at) * 1000)::bigint, (extract(epoch FROM now() - c.run_at) * 1000)::bigint
    FROM (SELECT 1) one LEFT JOIN claimed c ON true
   ORDER BY c.priority, c.run_at, c.id
)sql"};

// After a lost connection: did the claim under this run_id commit?
constexpr Statement kRecover{"recover_claim", R"sql(
  SELECT t.source, (SELECT count(*) FROM takt.job_locks l WHERE l.run_id = $2),
         i.id, i.attempt, i.key, i.payload::text,
         (extract(epoch FROM now() - i.enqueued_at) * 1000)::bigint, (extract(epoch FROM now() - i.run_at) * 1000)::bigint
    FROM takt.ticks t LEFT JOIN takt.claims c ON c.run_id = $2
    LEFT JOIN takt.items i ON i.id = ANY (c.item_ids) AND i.run_id = $2 AND i.state = 1
   WHERE t.id = $1 AND t.run_id = $2 AND t.finished_at IS NULL
   ORDER BY i.priority, i.run_at, i.id
)sql"};

constexpr Statement kRunIds{"run_ids", "SELECT nextval('takt.run_ids') FROM generate_series(1, 100)"};

constexpr Statement kPeek{"peek_due_items", R"sql(
  SELECT NULL, NULL, i.id, i.attempt + 1, i.key, i.payload::text,
         (extract(epoch FROM now() - i.enqueued_at) * 1000)::bigint, (extract(epoch FROM now() - i.run_at) * 1000)::bigint
    FROM takt.items i
   WHERE i.job_id = $1 AND i.state = 0 AND i.run_at <= now()
   ORDER BY i.priority, i.run_at, i.id LIMIT $2
)sql"};

std::vector<ClaimedItem> items_of(const Rows& rows) {
  std::vector<ClaimedItem> items;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows.is_null(i, 2)) continue;
    items.push_back({rows.integer(i, 2), static_cast<int>(rows.integer(i, 3)), std::string(rows.text(i, 4)), std::string(rows.text(i, 5)),
                     Duration(rows.integer(i, 6)), Duration(rows.integer(i, 7))});
  }
  return items;
}

Claim claim_of(const Rows& rows, bool exclusive) {
  Claim claim;
  claim.source = rows.text(0, 0);
  claim.outcome = exclusive && rows.integer(0, 1) == 0 ? ClaimOutcome::locked : ClaimOutcome::claimed;
  claim.items = items_of(rows);
  return claim;
}

}  // namespace

std::string tick_source(const std::string& tick_id) {
  for (const char* source : {"due", "more", "manual", "once", "replay"}) {
    if (tick_id.starts_with(std::string(source) + ":")) return source;
  }
  return "external";
}

void accept_inline_items(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  std::vector<std::string> payloads;
  std::vector<std::optional<std::string>> keys, run_ats;
  std::vector<std::int64_t> priorities;
  for (const auto& item : tick.items()) {
    payloads.push_back(to_json(item.payload()));
    keys.push_back(item.key().empty() ? std::nullopt : std::optional(item.key()));
    run_ats.push_back(item.has_run_at() ? std::optional(format_rfc3339(get_timestamp(item.run_at()))) : std::nullopt);
    priorities.push_back(item.priority());
  }
  if (payloads.empty()) {
    if (!job.definition.item_per_tick || (source != "external" && source != "manual" && source != "once")) return;
    payloads.emplace_back("{}");
    keys.emplace_back(tick.id());
    run_ats.emplace_back(std::nullopt);
    priorities.push_back(0);
  }
  database.exec_retrying(kAccept, Params::of(tick.id(), job.id, source, get_timestamp(tick.due_at()), payloads, keys, run_ats, priorities));
}

Claim claim_batch(Database& database, const ClaimRequest& request) {
  const bool exclusive = request.job.definition.concurrency == 1;
  const auto rows = database.exec_retrying(
      kClaim, Params::of(request.tick_id, request.job.id, request.source, request.due_at, request.run_id, request.worker,
                         request.job.definition.lease, request.job.definition.concurrency, request.batch_size));
  if (!rows.is_null(0, 0)) return claim_of(rows, exclusive);
  const auto mine = database.exec(kRecover, Params::of(request.tick_id, request.run_id));
  if (mine.empty()) return {};
  return claim_of(mine, exclusive);
}

std::int64_t RunIds::next() {
  if (ids_.empty()) {
    const auto rows = database_.exec(kRunIds);
    for (std::size_t i = rows.size(); i > 0; --i) ids_.push_back(rows.integer(i - 1, 0));
  }
  const std::int64_t id = ids_.back();
  ids_.pop_back();
  return id;
}

std::vector<ClaimedItem> peek_due_items(Database& database, std::int64_t job_id, int most) {
  return items_of(database.exec(kPeek, Params::of(job_id, most)));
}

}  // namespace takt
