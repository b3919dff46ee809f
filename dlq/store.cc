#include "dlq/store.h"

#include <set>

#include "core/db/query.h"
#include "core/text/text.h"

namespace takt {

namespace {

/// Letters, a place in each array for each.
struct Letters {
  std::vector<std::string> ids, kinds, jobs, reasons, errors;
  std::vector<std::optional<std::string>> item_ids, keys;
  std::vector<std::int64_t> priorities;
  std::vector<std::optional<std::string>> payloads;
  std::vector<std::int64_t> attempts;
  std::vector<std::optional<std::string>> bodies, headers, deaths;
  std::vector<std::string> died_ats, genuine;
  static constexpr auto fields() {
    return std::tuple(&Letters::ids, &Letters::kinds, &Letters::jobs, &Letters::reasons, &Letters::errors, &Letters::item_ids,
                      &Letters::keys, &Letters::priorities, &Letters::payloads, &Letters::attempts, &Letters::bodies, &Letters::headers,
                      &Letters::deaths, &Letters::died_ats, &Letters::genuine);
  }
};
struct Most {
  std::int64_t letters = 0, bytes = 0;
  static constexpr auto fields() { return std::tuple(&Most::letters, &Most::bytes); }
};

// attempt_errors: served by failed_attempts_item in each partition.
constexpr Query<Letters, NoRow> kStore{"store_letters", R"sql(
  INSERT INTO takt.dead_letters (id, kind, job, reason, error, item_id, key, priority, payload, attempts, body, headers, x_death,
                                 died_at, genuine, attempt_errors)
  SELECT l.id, l.kind, l.job, l.reason, l.error, l.item_id, l.key, l.priority, l.payload::jsonb, l.attempts, l.body::bytea,
         l.headers::jsonb, l.x_death::jsonb, l.died_at, l.genuine,
         (SELECT jsonb_agg(jsonb_build_object('replay', a.replay, 'attempt', a.attempt, 'at', a.at, 'run', a.run_id,
                                              'class', a.class, 'reason', a.reason, 'error', a.error) ORDER BY a.at)
            FROM takt.failed_attempts a WHERE l.item_id IS NOT NULL AND a.item_id = l.item_id)
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::smallint[], $9::text[],
                $10::integer[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::boolean[])
      AS l(id, kind, job, reason, error, item_id, key, priority, payload, attempts, body, headers, x_death, died_at, genuine)
  ON CONFLICT (id) DO NOTHING
)sql"};

// Served by dead_letters_unsigned; pg_column_size() reads no body. Skips what somebody else has locked: another archive, or an operator.
constexpr Query<Most, NoRow> kBoundUnsigned{"bound_unsigned_letters", R"sql(
  WITH beyond AS MATERIALIZED (
    SELECT id FROM (
      SELECT id, row_number() OVER newest AS letters, sum(size) OVER newest AS bytes
        FROM (SELECT id, died_at, coalesce(pg_column_size(body), 0) + coalesce(pg_column_size(headers), 0)
                                  + coalesce(pg_column_size(x_death), 0) AS size
                FROM takt.dead_letters WHERE NOT genuine) d
      WINDOW newest AS (ORDER BY died_at DESC, id DESC ROWS UNBOUNDED PRECEDING)) counted
     WHERE letters > $1 OR bytes > $2)
  DELETE FROM takt.dead_letters WHERE id IN (
    SELECT d.id FROM takt.dead_letters d JOIN beyond b ON b.id = d.id FOR UPDATE OF d SKIP LOCKED)
)sql"};

}  // namespace

int store_letters(Database& database, const std::vector<Letter>& letters) {
  Letters stored;
  std::set<std::string> seen;
  for (const auto& letter : letters) {
    if (!seen.insert(letter.id).second) continue;
    stored.ids.push_back(letter.id);
    stored.kinds.push_back(letter.kind);
    stored.jobs.push_back(letter.job);
    stored.reasons.push_back(letter.reason);
    stored.errors.push_back(letter.error);
    stored.item_ids.push_back(letter.item_id ? std::optional(std::to_string(*letter.item_id)) : std::nullopt);
    stored.keys.push_back(letter.key);
    stored.priorities.push_back(letter.priority);
    stored.payloads.push_back(letter.payload);
    stored.attempts.push_back(letter.attempts);
    stored.bodies.push_back(letter.body ? std::optional("\\x" + to_hex(*letter.body)) : std::nullopt);
    stored.headers.push_back(letter.headers);
    stored.deaths.push_back(letter.x_death);
    stored.died_ats.push_back(format_rfc3339(letter.died_at));
    stored.genuine.emplace_back(letter.genuine ? "t" : "f");
  }
  return static_cast<int>(execute_retrying(database, kStore, stored));
}

int bound_unsigned_letters(Database& database, const LetterVolume& most) {
  return static_cast<int>(execute(database, kBoundUnsigned, {most.letters, most.bytes}));
}

}  // namespace takt
