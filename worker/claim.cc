#include "worker/claim.h"

#include <algorithm>

#include "core/observe/log.h"
#include "worker/claim_rows.h"

namespace takt {

namespace {

/// A tick's items, a place in each array for each.
struct Carried {
  std::string tick_id;
  std::int64_t job_id = 0;
  std::string source;
  Timestamp due_at{};
  std::vector<std::string> payloads;
  std::vector<std::optional<std::string>> keys, run_ats;
  std::vector<std::int64_t> priorities;
  static constexpr auto fields() {
    return std::tuple(&Carried::tick_id, &Carried::job_id, &Carried::source, &Carried::due_at, &Carried::payloads, &Carried::keys,
                      &Carried::run_ats, &Carried::priorities);
  }
};
struct PutOff {
  std::string tick_id;
  std::int64_t job_id = 0;
  std::string source;
  Timestamp due_at{};
  std::optional<std::string> items;
  int batch_size = 0;
  static constexpr auto fields() {
    return std::tuple(&PutOff::tick_id, &PutOff::job_id, &PutOff::source, &PutOff::due_at, &PutOff::items, &PutOff::batch_size);
  }
};
struct TickId {
  std::string tick_id;
  static constexpr auto fields() { return std::tuple(&TickId::tick_id); }
};
struct TickAndRun : TickId {
  std::int64_t run_id = 0;
  static constexpr auto fields() { return std::tuple_cat(TickId::fields(), std::tuple(&TickAndRun::run_id)); }
};
struct TooLarge {
  std::int64_t job_id = 0, run_id = 0;
  std::string error;
  int state = 0;
  static constexpr auto fields() { return std::tuple(&TooLarge::job_id, &TooLarge::run_id, &TooLarge::error, &TooLarge::state); }
};
struct Aside {
  std::int64_t item_id = 0;
  static constexpr auto fields() { return std::tuple(Field("item_id", &Aside::item_id)); }
};
struct RunId {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(Field("nextval", &RunId::id)); }
};
struct Look {
  std::int64_t job_id = 0;
  int most = 0;
  static constexpr auto fields() { return std::tuple(&Look::job_id, &Look::most); }
};

constexpr Query<Carried, Count> kAccept{
    "accept_inline_items", "SELECT takt.accept_items($1, $2, $3, $4, $5::jsonb[], $6::text[], $7::timestamptz[], $8::integer[]) AS count"};
constexpr int kAcceptTries = 2;
constexpr auto kLockTimeout = "55P03";

// Served by ticks' primary key. publish_at stays, so that no new leader takes a slot for one that was never sent.
constexpr Query<PutOff, NoRow> kPutOff{"put_off_tick", R"sql(
  INSERT INTO takt.ticks AS t (id, job_id, source, due_at, items, batch_size, published_at, put_off_until)
  VALUES ($1, $2, $3, $4, $5::jsonb, nullif($6::integer, 0), now(), now() + interval '1 s')
  ON CONFLICT (id) DO UPDATE
     SET put_off_until = now() + greatest(interval '1 s', least(interval '1 min', (now() - t.publish_at) / 4)),
         published_at = coalesce(t.published_at, now())
   WHERE t.finished_at IS NULL AND t.lease_until IS NULL
)sql"};

// Served by ticks' primary key.
constexpr Query<TickId, NoRow> kEndUnbegun{"end_unbegun_tick", R"sql(
  UPDATE takt.ticks SET finished_at = now() WHERE id = $1 AND finished_at IS NULL AND lease_until IS NULL AND begun_at IS NULL
)sql"};

// Served by ticks' primary key and items_due (state, job, priority, run_at, id). Locks the tick's row, the job's lock row if
// it is exclusive, and only the items it returns.
constexpr Query<BeginRun, ClaimRow> kBegin{"begin_run",
                                           "SELECT " TAKT_CLAIM_COLUMNS " FROM takt.begin_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"};

constexpr auto kTooLarge = "54000";  // program_limit_exceeded: over 1 GB

// Served by items_due.
constexpr Query<TooLarge, Aside> kSetAside{"set_aside_first_due", R"sql(
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
constexpr Query<TickAndRun, ClaimRow> kClaimedBy{"claimed_by", "SELECT " TAKT_CLAIM_COLUMNS " FROM takt.claimed_by($1, $2)"};

constexpr Query<NoRequest, RunId> kRunIds{"run_ids", "SELECT nextval('takt.run_ids') FROM generate_series(1, 100)"};

constexpr Query<Look, ClaimRow> kPeek{"peek_due_items", R"sql(
  SELECT NULL::text AS source, NULL::boolean AS locked, i.id AS item_id, i.attempt + 1 AS attempt, i.key, i.payload::text AS payload,
         (extract(epoch FROM now() - greatest(i.enqueued_at, 'epoch')) * 1000)::bigint AS age_ms,
         (extract(epoch FROM now() - greatest(i.run_at, 'epoch')) * 1000)::bigint AS overdue_ms
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
    const auto aside = query_retrying(database, kSetAside, {request.job.id, request.run_id, error.what(), state});
    if (aside.empty()) throw error;
    log_error("item blocked", {{"job", request.job.definition.name}, {"item", aside.front().item_id}, {"error", error.what()}});
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
  Carried carried{tick.id(), job.id, source, get_timestamp(tick.due_at()), {}, {}, {}, {}};
  for (const auto& item : tick.items()) {
    carried.payloads.push_back(payload_text(item).value_or("{}"));  // verify_tick() has judged it
    carried.keys.push_back(item.key().empty() ? std::nullopt : std::optional(item.key()));
    carried.run_ats.push_back(item.has_run_at() ? std::optional(format_rfc3339(get_timestamp(item.run_at()))) : std::nullopt);
    carried.priorities.push_back(item.priority());
  }
  if (carried.payloads.empty()) {
    if (!brings_its_own(job, tick, source)) return true;
    carried.payloads.emplace_back("{}");
    carried.keys.emplace_back(tick.id());
    carried.run_ats.emplace_back(std::nullopt);
    carried.priorities.push_back(0);
  }
  const bool keyed = std::any_of(carried.keys.begin(), carried.keys.end(), [](const auto& key) { return key.has_value(); });
  try {
    query_retrying(database, kAccept, carried, kAcceptTries);
  } catch (const DatabaseError& error) {
    if (error.sqlstate() != kLockTimeout || !keyed) throw;
    return false;
  }
  return true;
}

void put_off_tick(Database& database, const CatalogJob& job, const v1::JobTick& tick, const std::string& source) {
  const auto items = tick.items().empty() ? std::nullopt : std::optional(items_to_json(tick));
  execute_retrying(database, kPutOff,
                   {.tick_id = tick.id(),
                    .job_id = job.id,
                    .source = source,
                    .due_at = get_timestamp(tick.due_at()),
                    .items = items,
                    .batch_size = static_cast<int>(tick.batch_size())});
}

void end_unbegun_tick(Database& database, const std::string& tick_id) { execute_retrying(database, kEndUnbegun, {tick_id}); }

std::optional<ClaimedItem> take_item(ClaimRow& row) {
  if (!row.item_id) return std::nullopt;
  return ClaimedItem{*row.item_id, row.attempt, std::move(row.key), std::move(row.payload), row.age, row.overdue};
}

BeginRun begin_run(const ClaimRequest& request) {
  const auto& job = request.job.definition;
  return {.tick_id = request.tick_id,
          .job_id = request.job.id,
          .due_at = request.due_at,
          .source = request.source,
          .run_id = request.run_id,
          .worker = request.worker,
          .lease = job.lease,
          .exclusive = job.concurrency == 1,
          .batch_size = request.batch_size,
          .dry_run = request.dry_run};
}

Claim claim_batch(Database& database, const ClaimRequest& request) {
  std::vector<ClaimRow> rows;
  try {
    rows = query_retrying(database, kBegin, begin_run(request));
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    return claim_less(database, request, error);
  }
  if (!rows.empty()) return take_claim(std::span(rows));
  return recover_claim(database, request.tick_id, request.run_id);
}

Claim recover_claim(Database& database, const std::string& tick_id, std::int64_t run_id) {
  auto rows = query_retrying(database, kClaimedBy, {{tick_id}, run_id});
  return take_claim(std::span(rows));
}

std::int64_t RunIds::next() {
  if (ids_.empty()) {
    const auto fresh = query(database_, kRunIds);
    for (auto id = fresh.rbegin(); id != fresh.rend(); ++id) ids_.push_back(id->id);
  }
  const std::int64_t id = ids_.back();
  ids_.pop_back();
  return id;
}

std::vector<ClaimedItem> peek_due_items(Database& database, std::int64_t job_id, int most) {
  std::vector<ClaimedItem> items;
  for (auto& row : query(database, kPeek, {job_id, most})) items.push_back(*take_item(row));
  return items;
}

}  // namespace takt
