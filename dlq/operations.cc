#include "dlq/operations.h"

#include <tuple>

#include "core/db/query.h"

namespace takt {

namespace {

struct Limited : LetterFilter {
  int limit = 0;
  static constexpr auto fields() { return std::tuple_cat(LetterFilter::fields(), std::tuple(&Limited::limit)); }
};
struct LetterId {
  std::string id;
  static constexpr auto fields() { return std::tuple(&LetterId::id); }
};
struct Id {
  std::string id;
  static constexpr auto fields() { return std::tuple(Field("id", &Id::id)); }
};
struct ToMendRow : LetterToMend {
  static constexpr auto fields() {
    return std::tuple(Field("id", &ToMendRow::id), Field("kind", &ToMendRow::kind), Field("job", &ToMendRow::job),
                      Field("state", &ToMendRow::state), Field("changed_by", &ToMendRow::changed_by), Field("payload", &ToMendRow::payload),
                      Field("pretty", &ToMendRow::pretty));
  }
};
struct Edit {
  std::string id;
  std::optional<std::string> before;
  std::string after, who;
  static constexpr auto fields() { return std::tuple(&Edit::id, &Edit::before, &Edit::after, &Edit::who); }
};
struct EditOutcome {
  std::string outcome;
  static constexpr auto fields() { return std::tuple(Field("outcome", &EditOutcome::outcome)); }
};
/// What somebody does with letters.
struct Act {
  std::vector<std::string> ids;
  std::string who;
  static constexpr auto fields() { return std::tuple(&Act::ids, &Act::who); }
};
struct Ids {
  std::vector<std::string> ids;
  static constexpr auto fields() { return std::tuple(&Ids::ids); }
};
struct Revived {
  std::int64_t count = 0;
  std::string notified;
  static constexpr auto fields() { return std::tuple(Field("count", &Revived::count), Field("notified", &Revived::notified)); }
};
struct WhyNot {
  std::vector<std::string> ids;
  bool also_replayed = false;
  static constexpr auto fields() { return std::tuple(&WhyNot::ids, &WhyNot::also_replayed); }
};
struct Reason {
  std::string reason;
  std::int64_t letters = 0;
  std::string first;
  std::optional<std::int64_t> item_id;
  static constexpr auto fields() {
    return std::tuple(Field("reason", &Reason::reason), Field("letters", &Reason::letters), Field("first", &Reason::first),
                      Field("item_id", &Reason::item_id));
  }
};
struct ItemId {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(&ItemId::id); }
};
struct State {
  std::string state;
  static constexpr auto fields() { return std::tuple(Field("state", &State::state)); }
};
struct OldLetters {
  Duration age{};
  int most = 0;
  static constexpr auto fields() { return std::tuple(&OldLetters::age, &OldLetters::most); }
};
struct OlderThan {
  Duration age{};
  static constexpr auto fields() { return std::tuple(&OlderThan::age); }
};

#define TAKT_LETTER_FILTER                                                                                                               \
  " ($1::text[] = '{}' OR d.id = ANY ($1::text[])) AND ($2::text IS NULL OR d.job = $2)"                                                 \
  " AND ($3::text IS NULL OR d.reason = $3) AND ($4::text IS NULL OR d.kind = $4)"                                                       \
  " AND ($5::text IS NULL OR d.state = $5) AND ($6::timestamptz IS NULL OR d.died_at >= $6)"                                             \
  " AND ($7::timestamptz IS NULL OR d.died_at < $7)"                                                                                     \
  " AND ($8::text IS NULL OR strpos(lower(coalesce(d.payload::text, '') || ' ' || d.error || ' ' || coalesce(d.key, '')), lower($8)) > " \
  "0) "

// Served by dead_letters_died unless ids are given.
constexpr Query<Limited, LetterRow> kList{
    "letters_list",
    "SELECT d.id, d.kind, d.job, d.reason, d.error, d.item_id, d.attempts, (extract(epoch FROM d.died_at) * 1000000)::bigint AS died_us,"
    " d.state, (extract(epoch FROM d.changed_at) * 1000000)::bigint AS changed_us, d.changed_by, d.key"
    " FROM takt.dead_letters d WHERE" TAKT_LETTER_FILTER "ORDER BY d.died_at DESC, d.id LIMIT $9"};
constexpr Query<Limited, Id> kOpen{"letters_open", "SELECT d.id FROM takt.dead_letters d WHERE d.state = 'archived' AND" TAKT_LETTER_FILTER
                                                   "ORDER BY d.died_at, d.id LIMIT $9"};
constexpr Query<LetterFilter, Count> kCountOpen{
    "letters_count_open", "SELECT count(*) AS count FROM takt.dead_letters d WHERE d.state = 'archived' AND" TAKT_LETTER_FILTER};

constexpr Query<LetterFilter, Count> kCount{"letters_count", "SELECT count(*) AS count FROM takt.dead_letters d WHERE" TAKT_LETTER_FILTER};

constexpr Query<One<std::string>, Part> kParts{"letter_parts", R"sql(
  SELECT p.name, jsonb_pretty(p.value::jsonb) AS pretty, p.value::text AS value
    FROM takt.dead_letters d CROSS JOIN LATERAL (VALUES
      (0, 'letter', to_json(d.id)), (0, 'kind', to_json(d.kind)), (0, 'job', to_json(d.job)), (0, 'state', to_json(d.state)),
      (0, 'changed_at', to_json(takt.shown(d.changed_at))), (0, 'changed_by', to_json(d.changed_by)),
      (0, 'edited_at', to_json(takt.shown(d.edited_at))), (0, 'edited_by', to_json(d.edited_by)),
      (0, 'reason', to_json(d.reason)), (0, 'error', to_json(d.error)), (0, 'item', to_json(d.item_id)), (0, 'key', to_json(d.key)),
      (0, 'priority', to_json(d.priority)), (0, 'attempts', to_json(d.attempts)), (0, 'died_at', to_json(takt.shown(d.died_at))),
      (0, 'archived_at', to_json(takt.shown(d.archived_at))), (0, 'payload', d.payload::json),
      (1, 'headers', d.headers::json), (1, 'x_death', d.x_death::json), (1, 'bytes', to_json(octet_length(d.body))),
      (1, 'body_base64', to_json(translate(encode(substring(d.body FOR 15000), 'base64'), E'\n', ''))),
      (0, 'history', (SELECT coalesce(json_agg(json_build_object('at', takt.shown((a->>'at')::timestamptz), 'attempt', a->'attempt', 'replay', a->'replay',
                                                        'run', a->'run', 'class', a->'class', 'reason', a->'reason', 'error', a->'error')), '[]')
                        FROM jsonb_array_elements(d.attempt_errors) a))) p(of_message, name, value)
   WHERE d.id = $1 AND (p.of_message = 0 OR d.kind = 'message')
)sql"};

constexpr Query<LetterId, ToMendRow> kToMend{"letter_to_mend", R"sql(
  SELECT id, kind, job, state, coalesce(changed_by, '') AS changed_by, payload::text AS payload,
         coalesce(jsonb_pretty(payload), '{}') AS pretty
    FROM takt.dead_letters WHERE id = $1
)sql"};

// 'edited' also where it was so a moment ago and the answer was lost.
constexpr Query<Edit, EditOutcome> kMend{"letter_mend", R"sql(
  WITH letter AS MATERIALIZED (
    SELECT id, state, payload::text AS before, $3::jsonb::text AS after FROM takt.dead_letters WHERE id = $1 AND kind <> 'message' FOR UPDATE),
  edited AS (
    UPDATE takt.dead_letters d SET payload = $3::jsonb, edited_at = now(), edited_by = $4
      FROM letter l WHERE d.id = l.id AND l.state = 'archived' AND l.before IS NOT DISTINCT FROM $2 AND l.after IS DISTINCT FROM l.before
    RETURNING d.id, l.before, l.after),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject, detail)
    SELECT $4, 'command line', 'dlq edit', id,
           jsonb_build_object('bytes', jsonb_build_array(octet_length(before), octet_length(after)),
                              'sha256', jsonb_build_array(encode(sha256(convert_to(before, 'UTF8')), 'hex'),
                                                          encode(sha256(convert_to(after, 'UTF8')), 'hex')))
      FROM edited)
  SELECT CASE WHEN state <> 'archived' THEN 'changed'
              WHEN before IS NOT DISTINCT FROM $2 THEN CASE WHEN after = before THEN 'same' ELSE 'edited' END
              WHEN after = before THEN 'edited'
              ELSE 'changed' END AS outcome
    FROM letter
)sql"};

// Letters are locked first, in order, so that of two operators one waits and then finds them replayed. A key that another live item owns,
// or that a finished one owns within its dedupe window, keeps its letter in the archive.
constexpr Query<Act, Revived> kReplayItems{"letters_replay_items", R"sql(
  WITH chosen AS (
    SELECT d.id, d.item_id, d.key, d.priority, d.payload, split_part(d.id, '-', 3)::smallint AS replay, j.id AS job_id
      FROM takt.dead_letters d JOIN takt.jobs j ON j.name = d.job AND j.removed_at IS NULL
     WHERE d.id = ANY ($1::text[]) AND d.state = 'archived' AND d.kind = 'item' AND d.payload IS NOT NULL
     ORDER BY d.id
       FOR UPDATE OF d),
  owned AS (
    INSERT INTO takt.item_keys AS k (job_id, key, item_id)
    SELECT DISTINCT ON (job_id, key) job_id, key, item_id FROM chosen WHERE key IS NOT NULL ORDER BY job_id, key, item_id
    ON CONFLICT (job_id, key) DO UPDATE SET item_id = excluded.item_id, expires_at = NULL
     WHERE k.expires_at IS NOT NULL AND (k.item_id = excluded.item_id OR k.expires_at <= clock_timestamp())
    RETURNING k.item_id),
  revived AS (
    SELECT c.* FROM chosen c WHERE c.key IS NULL OR c.item_id IN (SELECT item_id FROM owned)),
  history AS (
    DELETE FROM takt.ended_items f USING revived r WHERE f.id = r.item_id AND f.state = 3),
  live AS (
    INSERT INTO takt.items (id, job_id, priority, replay, key, payload)
    SELECT item_id, job_id, priority, replay + 1, key, payload FROM revived),
  marked AS (
    UPDATE takt.dead_letters d SET state = 'replayed', changed_at = now(), changed_by = $2
      FROM revived r WHERE d.id = r.id RETURNING d.id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'dlq replay', id FROM marked)
  SELECT (SELECT count(*) FROM marked) AS count, pg_notify('takt_due', '')::text AS notified
)sql"};

// The id of the tick that a letter `d` gives, at most 256 bytes as any tick's (kMaxTickIdBytes). Each letter has another: what would be
// longer begins with a digest, and no letter's id does.
#define TAKT_REPLAYS_TICK_ID                                                                     \
  " 'replay:' || CASE WHEN octet_length(convert_to('replay:' || d.id, 'UTF8')) <= 256 THEN d.id" \
  " ELSE encode(sha256(convert_to(d.id, 'UTF8')), 'hex') || '-' || left(d.id, 40) END "

// The new tick's id is made from the letter's, so a letter can give one tick only: one that is there already is its own if the audit says
// that the letter was replayed before (it was pruned since, and came again). Another's leaves the letter open.
// Where the first one would have brought an item of its own (a tick from outside or by hand, without items, for a job with item_per_tick),
// so does this one, under the same key. A schedule's slot would not: its id is made of the job, the schedule and
// the time it was due, of whose fraction not everybody writes the last zeros.
constexpr Query<Act, Count> kReplayTicks{"letters_replay_ticks", R"sql(
  WITH chosen AS (
    SELECT d.id, d.job, d.payload,)sql" TAKT_REPLAYS_TICK_ID R"sql(AS tick_id, j.id AS job_id,
           coalesce((j.definition->>'item_per_tick')::boolean, false) AS item_per_tick
      FROM takt.dead_letters d JOIN takt.jobs j ON j.name = d.job AND j.removed_at IS NULL
     WHERE d.id = ANY ($1::text[]) AND d.state = 'archived' AND d.kind = 'tick' AND d.payload IS NOT NULL
     ORDER BY d.id
       FOR UPDATE OF d),
  stored AS (
    INSERT INTO takt.ticks (id, job_id, source, due_at, items, batch_size, dry_run)
    SELECT tick_id, job_id, 'replay', now(),
           CASE WHEN jsonb_array_length(coalesce(payload->'items', '[]')) > 0 THEN payload->'items'
                WHEN item_per_tick AND NOT coalesce((payload->>'dryRun')::boolean, false)
                     AND payload->>'id' !~ '^(due|more|alone|replay):'
                     AND rtrim(payload->>'id', '.0Z') IS DISTINCT FROM
                         job || '/' || split_part(split_part(payload->>'id', '@', 1), '/', 2) || '@' || rtrim(payload->>'dueAt', '.0Z')
                THEN jsonb_build_array(jsonb_build_object('payload', '{}'::jsonb, 'key', payload->>'id')) END,
           nullif(least(coalesce((payload->>'batchSize')::bigint, 0), 2147483647), 0)::integer, (payload->>'dryRun')::boolean
      FROM chosen ON CONFLICT (id) DO NOTHING RETURNING id),
  marked AS (
    UPDATE takt.dead_letters d SET state = 'replayed', changed_at = now(), changed_by = $2
      FROM chosen c
     WHERE d.id = c.id
       AND (c.tick_id IN (SELECT id FROM stored)
            OR (EXISTS (SELECT 1 FROM takt.ticks t WHERE t.id = c.tick_id)
                AND EXISTS (SELECT 1 FROM takt.audit a WHERE a.subject = c.id AND a.action = 'dlq replay')))
    RETURNING d.id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'dlq replay', id FROM marked)
  SELECT count(*) AS count FROM marked
)sql"};

constexpr Query<Ids, Count> kReplayed{"letters_replayed",
                                      "SELECT count(*) AS count FROM takt.dead_letters WHERE id = ANY ($1::text[]) AND state = 'replayed'"};

// By the primary keys of dead_letters and ticks; an item's state by its id.
constexpr Query<WhyNot, Reason> kWhyNot{"letters_why_not", R"sql(
  SELECT CASE WHEN d.id IS NULL THEN 'not known; pruned, perhaps'
              WHEN d.state = 'replayed' THEN 'replayed at ' || to_char(d.changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' by ' || d.changed_by
              WHEN d.state = 'discarded' THEN 'discarded at ' || to_char(d.changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' by ' || d.changed_by
              WHEN d.kind = 'message' THEN 'a message, which is only kept'
              WHEN j.id IS NULL THEN 'of job ' || d.job || ', which is not applied'
              WHEN d.payload IS NULL THEN 'without a payload'
              WHEN d.key IS NOT NULL THEN 'its key is that of item ' || coalesce((SELECT k.item_id::text FROM takt.item_keys k WHERE k.job_id = j.id AND k.key = d.key), 'another')
              WHEN d.kind = 'tick' AND EXISTS (SELECT 1 FROM takt.ticks t WHERE t.id =)sql" TAKT_REPLAYS_TICK_ID R"sql()
                THEN 'another tick has the id that its replay would have'
              ELSE 'not replayed' END AS reason,
         count(*) AS letters, min(u.id) AS first, min(CASE WHEN d.state = 'replayed' THEN d.item_id END) AS item_id
    FROM unnest($1::text[]) u(id) LEFT JOIN takt.dead_letters d ON d.id = u.id LEFT JOIN takt.jobs j ON j.name = d.job AND j.removed_at IS NULL
   WHERE $2 OR d.state IS DISTINCT FROM 'replayed'
   GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10
)sql"};
// By primary keys, and the bounds of what each run claimed (runs_items).
constexpr Query<ItemId, State> kItemState{"letters_item_state", R"sql(
  SELECT takt.state_name(state) AS state FROM takt.items WHERE id = $1
  UNION ALL SELECT takt.state_name(state) FROM takt.ended_items WHERE id = $1
  UNION ALL SELECT CASE status WHEN 'running' THEN 'running' ELSE 'done' END FROM takt.runs
             WHERE item_min <= $1 AND item_max >= $1 AND $1 = ANY (item_ids)
  LIMIT 1
)sql"};

constexpr Query<Act, Count> kDiscard{"letters_discard", R"sql(
  WITH marked AS (
    UPDATE takt.dead_letters SET state = 'discarded', changed_at = now(), changed_by = $2
     WHERE id = ANY ($1::text[]) AND state = 'archived' RETURNING id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'dlq discard', id FROM marked)
  SELECT count(*) AS count FROM marked
)sql"};

constexpr Query<OldLetters, Count> kPrune{"letters_prune", "SELECT takt.prune_dead_letters($1 * interval '1 ms', $2) AS count"};
constexpr Query<OlderThan, Count> kCountPrunable{
    "letters_prunable", "SELECT count(*) AS count FROM takt.dead_letters WHERE died_at < now() - $1 * interval '1 ms'"};

}  // namespace

std::vector<LetterRow> list_letters(Database& database, const LetterFilter& filter, int limit) {
  return query(database, kList, {filter, limit});
}

std::vector<Part> letter_parts(Database& database, const std::string& id) { return query(database, kParts, {id}); }

std::vector<std::string> open_letters(Database& database, const LetterFilter& filter, int limit) {
  std::vector<std::string> ids;
  for (auto& letter : query(database, kOpen, {filter, limit})) ids.push_back(std::move(letter.id));
  return ids;
}

std::int64_t count_open_letters(Database& database, const LetterFilter& filter) { return query(database, kCountOpen, filter).at(0).count; }

std::int64_t count_letters(Database& database, const LetterFilter& filter) { return query(database, kCount, filter).at(0).count; }

std::optional<LetterToMend> letter_to_mend(Database& database, const std::string& id) {
  auto letters = query(database, kToMend, {id});
  if (letters.empty()) return std::nullopt;
  return std::move(letters[0]);
}

Mended mend_letter(Database& database, const LetterToMend& letter, const std::string& payload, const std::string& who) {
  const auto outcomes = query_retrying(database, kMend, {letter.id, letter.payload, payload, who});
  if (outcomes.empty()) return Mended::changed;
  const auto& outcome = outcomes[0].outcome;
  return outcome == "edited" ? Mended::edited : outcome == "same" ? Mended::same : Mended::changed;
}

Replayed replay_letters(Database& database, const std::vector<std::string>& ids, const std::string& who) {
  Replayed replayed;
  database.transaction([&](Session& on) {
    replayed.items = static_cast<int>(query(on, kReplayItems, {ids, who}).at(0).count);
    replayed.ticks = static_cast<int>(query(on, kReplayTicks, {ids, who}).at(0).count);
    replayed.before = static_cast<int>(query(on, kReplayed, {ids}).at(0).count) - replayed.items - replayed.ticks;
  });
  replayed.refused = static_cast<int>(ids.size()) - replayed.items - replayed.ticks - replayed.before;
  return replayed;
}

std::vector<std::string> why_not_replayed(Database& database, const std::vector<std::string>& ids, bool also_replayed) {
  std::vector<std::string> lines;
  for (const auto& reason : query(database, kWhyNot, {ids, also_replayed})) {
    std::string line = reason.first + ": " + reason.reason;
    if (reason.item_id) {
      const auto item = query(database, kItemState, {*reason.item_id});
      line += "; item " + std::to_string(*reason.item_id) + " is " + (item.empty() ? "older than the history" : item[0].state);
    }
    if (reason.letters > 1) line += ", and " + std::to_string(reason.letters - 1) + " more alike";
    lines.push_back(std::move(line));
  }
  return lines;
}

int discard_letters(Database& database, const std::vector<std::string>& ids, const std::string& who) {
  return static_cast<int>(query_retrying(database, kDiscard, {ids, who}).at(0).count);
}

int prune_letters(Database& database, Duration age, int batch) {
  return static_cast<int>(query_retrying(database, kPrune, {age, batch}).at(0).count);
}

std::int64_t count_prunable(Database& database, Duration age) { return query(database, kCountPrunable, {age}).at(0).count; }

}  // namespace takt
