#include "worker/claim.h"

#include <algorithm>

#include "core/observe/log.h"

namespace takt {

namespace {

constexpr Statement kAccept{"accept_inline_items",
                            "SELECT takt.accept_items($1, $2, $3, $4, $5::jsonb[], $6::text[], $7::timestamptz[], $8::integer[])"};
constexpr int kAcceptTries = 2;
constexpr auto kLockTimeout = "55P03";

// Served by ticks' primary key. publish_at stays, so that no new leader takes a slot for one that was never sent.
constexpr Statement kPutOff{"put_off_tick", R"sql(
  INSERT INTO takt.ticks AS t (id, job_id, source, due_at, items, batch_size, published_at, put_off_until)
  VALUES ($1, $2, $3, $4, $5::jsonb, nullif($6::integer, 0), now(), now() + interval '1 s')
  ON CONFLICT (id) DO UPDATE
     SET put_off_until = now() + greatest(interval '1 s', least(interval '1 min', (now() - t.publish_at) / 4)),
         published_at = coalesce(t.published_at, now())
   WHERE t.finished_at IS NULL AND t.lease_until IS NULL
)sql"};

// Served by ticks' primary key.
constexpr Statement kEndUnbegun{"end_unbegun_tick", R"sql(
  UPDATE takt.ticks SET finished_at = now() WHERE id = $1 AND finished_at IS NULL AND lease_until IS NULL AND begun_at IS NULL
)sql"};

// Served by ticks' primary key and items_due (state, job, priority, run_at, id). Locks the tick's row, the job's lock row if
// it is exclusive, and only the items it returns.
constexpr Statement kBegin{"begin_run", "SELECT * FROM takt.begin_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"};

constexpr auto kTooLarge = "54000";  // program_limit_exceeded: over 1 GB

// Served by items_due.
constexpr Statement kSetAside{"set_aside_first_due", R"sql(
  WITH first AS (
    UPDATE takt.items i SET state = 5, attempt = i.attempt + 1
     WHERE i.ctid = (SELECT d.ctid FROM takt.items d WHERE d.job_id = $1 AND d.state = $4 AND d.run_at <= now()
                      ORDER BY d.priority, d.run_at, d.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING i.id, i.job_id, i.replay, i.attempt)
  INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error)
  SELECT id, now(), job_id, replay, attempt, $2, 'blocked', 'payload_too_large', 'PostgreSQL cannot hand out the payload: ' || $3 FROM first
  RETURNING item_id
)sql"};

// After a lost connection: did the claim under this run_id commit?
constexpr Statement kClaimedBy{"claimed_by", "SELECT * FROM takt.claimed_by($1, $2)"};

constexpr Statement kRunIds{"run_ids", "SELECT nextval('takt.run_ids') FROM generate_series(1, 100)"};

constexpr Statement kPeek{"peek_due_items", R"sql(
  SELECT NULL, NULL, i.id, i.attempt + 1, i.key, i.payload::text,
         (extract(epoch FROM now() - greatest(i.enqueued_at, 'epoch')) * 1000)::bigint, (extract(epoch FROM now() - greatest(i.run_at, 'epoch')) * 1000)::bigint
    FROM takt.items i
   WHERE i.job_id = $1 AND i.state = 0 AND i.run_at <= now()
   ORDER BY i.priority, i.run_at, i.id LIMIT $2
)sql"};

/// After a claim that PostgreSQL could not hand out. No enqueue stores such items; a tick may have brought them, or an older version.
Claim claim_less(Database& database, ClaimRequest request, const DatabaseError& error) {
  if (request.batch_size > 1) {
    request.batch_size = 1;
  } else {
    if (error.sqlstate() != kTooLarge) throw error;
    const int state = request.source == "alone" ? 6 : 0;
    const auto aside = database.exec_retrying(kSetAside, Params::of(request.job.id, request.run_id, error.what(), state));
    if (aside.empty()) throw error;
    log_error("item blocked", {{"job", request.job.definition.name}, {"item", aside.integer(0, 0)}, {"error", error.what()}});
  }
  return claim_batch(database, request);
}

}  // namespace

std::string tick_source(const std::string& tick_id) {
  for (const char* source : {"due", "more", "alone", "manual", "once", "replay"}) {
    if (tick_id.starts_with(std::string(source) + ":")) return source;
  }
  return "external";
}

namespace {
/// A tick without inline items that came from outside, for a job with item_per_tick, brings one item keyed by itself.
bool brings_its_own(const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  return tick.items().empty() && job.definition.item_per_tick && (source == "external" || source == "manual" || source == "once");
}
}  // namespace

int items_carried(const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  return brings_its_own(job, tick, source) ? 1 : tick.items_size();
}

bool accept_inline_items(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  std::vector<std::string> payloads;
  std::vector<std::optional<std::string>> keys, run_ats;
  std::vector<std::int64_t> priorities;
  for (const auto& item : tick.items()) {
    payloads.push_back(payload_text(item).value_or("{}"));  // verify_tick() has judged it
    keys.push_back(item.key().empty() ? std::nullopt : std::optional(item.key()));
    run_ats.push_back(item.has_run_at() ? std::optional(format_rfc3339(get_timestamp(item.run_at()))) : std::nullopt);
    priorities.push_back(item.priority());
  }
  if (payloads.empty()) {
    if (!brings_its_own(job, tick, source)) return true;
    payloads.emplace_back("{}");
    keys.emplace_back(tick.id());
    run_ats.emplace_back(std::nullopt);
    priorities.push_back(0);
  }
  const bool keyed = std::any_of(keys.begin(), keys.end(), [](const auto& key) { return key.has_value(); });
  const auto params = Params::of(tick.id(), job.id, source, get_timestamp(tick.due_at()), payloads, keys, run_ats, priorities);
  try {
    database.exec_retrying(kAccept, params, kAcceptTries);
  } catch (const DatabaseError& error) {
    if (error.sqlstate() != kLockTimeout || !keyed) throw;
    return false;
  }
  return true;
}

void put_off_tick(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  const auto items = tick.items().empty() ? std::nullopt : std::optional(items_to_json(tick));
  database.exec_retrying(kPutOff,
                         Params::of(tick.id(), job.id, source, get_timestamp(tick.due_at()), items, static_cast<int>(tick.batch_size())));
}

void end_unbegun_tick(Database& database, const std::string& tick_id) { database.exec_retrying(kEndUnbegun, Params::of(tick_id)); }

std::vector<ClaimedItem> claimed_items(const Rows& rows, std::size_t first_column, std::size_t first, std::size_t end) {
  std::vector<ClaimedItem> items;
  items.reserve(end - first);
  const auto at = [first_column](std::size_t column) { return first_column + column; };
  for (std::size_t i = first; i < end; ++i) {
    if (rows.is_null(i, at(2))) continue;
    items.push_back({rows.integer(i, at(2)), static_cast<int>(rows.integer(i, at(3))), std::string(rows.text(i, at(4))),
                     std::string(rows.text(i, at(5))), Duration(rows.integer(i, at(6))), Duration(rows.integer(i, at(7)))});
  }
  return items;
}

Claim read_claim(const Rows& rows, std::size_t first_column) { return read_claim(rows, first_column, 0, rows.size()); }

Claim read_claim(const Rows& rows, std::size_t first_column, std::size_t first, std::size_t end) {
  if (first == end || rows.is_null(first, first_column)) return {};
  return {rows.boolean(first, first_column + 1) ? ClaimOutcome::locked : ClaimOutcome::claimed, std::string(rows.text(first, first_column)),
          claimed_items(rows, first_column, first, end)};
}

Params claim_params(const ClaimRequest& request) {
  return Params::of(request.tick_id, request.job.id, request.due_at, request.source, request.run_id, request.worker,
                    request.job.definition.lease, request.job.definition.concurrency == 1, request.batch_size, request.dry_run);
}

Claim claim_batch(Database& database, const ClaimRequest& request) {
  Rows rows(nullptr);
  try {
    rows = database.exec_retrying(kBegin, claim_params(request));
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    return claim_less(database, request, error);
  }
  if (!rows.empty()) return read_claim(rows, 0);
  return recover_claim(database, request.tick_id, request.run_id);
}

Claim recover_claim(Database& database, const std::string& tick_id, std::int64_t run_id) {
  return read_claim(database.exec_retrying(kClaimedBy, Params::of(tick_id, run_id)), 0);
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
  const auto rows = database.exec(kPeek, Params::of(job_id, most));
  return claimed_items(rows, 0, 0, rows.size());
}

}  // namespace takt
