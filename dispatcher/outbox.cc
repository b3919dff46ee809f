#include "dispatcher/outbox.h"

#include <algorithm>

#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"
#include "core/tick/tick.h"
#include "dispatcher/schedule_scan.h"

namespace takt {

namespace {

constexpr std::size_t kMaxFresh = 20'000;
constexpr std::size_t kMaxFreshBytes = 64 * 1024 * 1024;
constexpr std::size_t kMaxSwept = 1000;
constexpr std::size_t kBatch = 500;
constexpr Duration kPublishTimeout = std::chrono::seconds(10);

struct OlderThan {
  Duration age{};
  static constexpr auto fields() { return std::tuple(&OlderThan::age); }
};
struct IdsInTerm : Term {
  std::vector<std::string> ids;
  static constexpr auto fields() { return std::tuple_cat(Term::fields(), std::tuple(&IdsInTerm::ids)); }
};
struct Unpublished {
  std::string id, job, queue, source;
  Timestamp due_at;
  std::string items;
  std::uint32_t batch_size = 0;
  bool dry_run = false;
  std::int64_t count = 0;
  static constexpr auto fields() {
    return std::tuple(Field("id", &Unpublished::id), Field("name", &Unpublished::job), Field("queue", &Unpublished::queue),
                      Field("source", &Unpublished::source), Field("due_us", &Unpublished::due_at), Field("items", &Unpublished::items),
                      Field("batch_size", &Unpublished::batch_size), Field("dry_run", &Unpublished::dry_run),
                      Field("count", &Unpublished::count));
  }
};
struct Anything {
  bool ticks = false, dead_letters = false;
  static constexpr auto fields() { return std::tuple(Field("ticks", &Anything::ticks), Field("dead_letters", &Anything::dead_letters)); }
};
struct DeadLetterRow {
  std::string id, body, payload;
  static constexpr auto fields() {
    return std::tuple(Field("id", &DeadLetterRow::id), Field("body", &DeadLetterRow::body), Field("payload", &DeadLetterRow::payload));
  }
};

// Served by ticks_unpublished. At most 1,000, and 8 MiB of items' text, but at least one; the last column: how many there are,
// up to 1,000.
constexpr Query<OlderThan, Unpublished> kUnpublished{"ticks_unpublished", R"sql(
  SELECT id, name, queue, source, due_us, items, batch_size, dry_run, count
    FROM (SELECT o.*, sum(octet_length(coalesce(o.items, ''))) OVER w AS bytes, row_number() OVER w AS n, count(*) OVER () AS count
            FROM (SELECT t.id, j.name, j.queue, t.source, (extract(epoch FROM t.due_at) * 1000000)::bigint AS due_us,
                         t.items::text AS items, coalesce(t.batch_size, 0) AS batch_size, coalesce(t.dry_run, false) AS dry_run, t.publish_at
                    FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
                   WHERE t.published_at IS NULL AND t.finished_at IS NULL AND t.publish_at < now() - $1 * interval '1 ms'
                   ORDER BY t.publish_at LIMIT 1000) o
          WINDOW w AS (ORDER BY o.publish_at, o.id)) x
   WHERE bytes <= 8388608 OR n = 1
   ORDER BY n
)sql"};

// A tick that no message can carry becomes a letter, which shows it and stops nothing else.
constexpr Query<IdsInTerm, NoRow> kUnfit{"outbox_unfit_ticks", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  ended AS (
    UPDATE takt.ticks t SET finished_at = now() FROM in_term
     WHERE t.id = ANY ($3::text[]) AND t.finished_at IS NULL AND t.begun_at IS NULL
    RETURNING t.id, t.job_id, t.due_at, t.items)
  INSERT INTO takt.dead_letters (id, kind, job, reason, error, payload, died_at)
  SELECT 'tick-' || e.id, 'tick', j.name, 'field_limit', 'its items do not fit into a message of 1 MiB, or are beyond a tick''s limits',
         jsonb_build_object('id', e.id, 'job', j.name, 'items', e.items,
                            'dueAt', to_char(e.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')), now()
    FROM ended e JOIN takt.jobs j ON j.id = e.job_id
  ON CONFLICT (id) DO NOTHING
)sql"};

// One cheap look for both kinds, since most often there is neither.
constexpr Query<OlderThan, Anything> kAnything{"outbox_anything", R"sql(
  SELECT EXISTS (SELECT 1 FROM takt.ticks t WHERE t.published_at IS NULL AND t.finished_at IS NULL AND t.publish_at < now() - $1 * interval '1 ms') AS ticks,
         EXISTS (SELECT 1 FROM takt.dead_letter_outbox) AS dead_letters
)sql"};

constexpr Query<IdsInTerm, NoRow> kPublished{"ticks_published", R"sql(
  UPDATE takt.ticks SET published_at = now()
   WHERE id = ANY ($3::text[]) AND published_at IS NULL
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
)sql"};

// At most 1,000, and 8 MiB of text, but at least one. The payload apart from the rest: its text is carried as it is.
constexpr Query<NoRequest, DeadLetterRow> kDeadLetters{"outbox_dead_letters", R"sql(
  SELECT id, (body - 'payload')::text AS body, coalesce((body -> 'payload')::text, '') AS payload
    FROM (SELECT o.*, sum(octet_length(o.body::text)) OVER w AS bytes, row_number() OVER w AS n
            FROM (SELECT * FROM takt.dead_letter_outbox ORDER BY created_at, id LIMIT 1000) o
          WINDOW w AS (ORDER BY o.created_at, o.id)) x
   WHERE bytes <= 8388608 OR n = 1
   ORDER BY n
)sql"};

// What is too large for a message, such as one written by a version with other limits, goes where its message would have led.
constexpr Query<IdsInTerm, NoRow> kStraightToArchive{"outbox_straight_to_archive", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()),
  gone AS (
    DELETE FROM takt.dead_letter_outbox o USING in_term WHERE o.id = ANY ($3::text[]) RETURNING o.id, o.body, o.created_at)
  INSERT INTO takt.dead_letters (id, kind, job, reason, error, item_id, key, priority, payload, attempts, died_at, attempt_errors)
  SELECT id, 'item', body->>'job', body->>'reason', body->>'error', (body->>'itemId')::bigint, nullif(body->>'key', ''),
         (body->>'priority')::smallint, body->'payload', (body->>'attempts')::integer, created_at,
         (SELECT jsonb_agg(jsonb_build_object('replay', a.replay, 'attempt', a.attempt, 'at', a.at, 'run', a.run_id,
                                              'class', a.class, 'reason', a.reason, 'error', a.error) ORDER BY a.at)
            FROM takt.failed_attempts a WHERE a.item_id = (body->>'itemId')::bigint)
    FROM gone ON CONFLICT (id) DO NOTHING
)sql"};

constexpr Query<IdsInTerm, NoRow> kDeadLettersGone{"outbox_dead_letters_gone", R"sql(
  DELETE FROM takt.dead_letter_outbox
   WHERE id = ANY ($3::text[])
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
)sql"};

}  // namespace

Outbox::Outbox(Database& database, amqp::Publisher& publisher, const KeyRing& keys, const Clock& clock, Metrics& metrics)
    : database_(database), publisher_(publisher), keys_(keys), clock_(clock), metrics_(metrics) {}

std::optional<Outbox::Signed> Outbox::sign(const TickRow& tick, Timestamp now) const {
  auto message = tick_message(tick, keys_, std::max(now, tick.fire_at));
  if (!message) return std::nullopt;
  return Signed{tick.id, tick.source, tick.due_at, std::move(*message)};
}

void Outbox::offer(const std::vector<TickRow>& ticks) {
  const Timestamp now = clock_.now();
  const SteadyTime steady = clock_.steady();
  for (const auto& tick : ticks) {
    auto ready = sign(tick, now);
    if (!ready) continue;  // the sweep ends it
    // By the monotonic clock from here on, and not for longer than a slot is stored ahead, whatever PostgreSQL's clock does.
    const auto in = std::clamp<std::chrono::microseconds>(tick.fire_at - now, std::chrono::microseconds(0), ScheduleScan::kAhead);
    const std::scoped_lock lock(mutex_);
    fresh_bytes_ += ready->message.body.size();
    if (fresh_.size() >= kMaxFresh || fresh_bytes_ > kMaxFreshBytes) {
      fresh_bytes_ -= ready->message.body.size();
      break;
    }
    fresh_.emplace(steady + in, std::move(*ready));
  }
  offered_.notify_all();  // more than one batch may be due at the same moment
}

void Outbox::forget_offers() {
  const std::scoped_lock lock(mutex_);
  fresh_.clear();
  fresh_bytes_ = 0;
}

void Outbox::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  offered_.notify_all();
}

std::vector<Outbox::Signed> Outbox::take_offered(Duration timeout) {
  std::vector<Signed> batch;
  const SteadyTime until = clock_.steady() + timeout;
  std::unique_lock lock(mutex_);
  while (true) {
    const SteadyTime now = clock_.steady();
    while (!fresh_.empty() && fresh_.begin()->first <= now && batch.size() < kBatch) {
      fresh_bytes_ -= fresh_.begin()->second.message.body.size();
      batch.push_back(std::move(fresh_.begin()->second));
      fresh_.erase(fresh_.begin());
    }
    if (!batch.empty() || (stopping_ ? fresh_.empty() : now >= until)) return batch;
    const SteadyTime next = fresh_.empty() ? until : fresh_.begin()->first;
    offered_.wait_for(lock, (stopping_ ? next : std::min(next, until)) - now);
  }
}

bool Outbox::publish(amqp::Publisher& publisher, const Term& term, std::vector<Signed> ticks) {
  std::vector<amqp::Message> messages;
  messages.reserve(ticks.size());
  for (auto& tick : ticks) messages.push_back(std::move(tick.message));
  const auto outcomes = publisher.publish_all(std::move(messages), kPublishTimeout);
  std::vector<std::string> confirmed;
  const Timestamp now = clock_.now();
  for (std::size_t i = 0; i < ticks.size(); ++i) {
    if (outcomes[i] == amqp::Outcome::confirmed) {
      confirmed.push_back(ticks[i].id);
      metrics_.tick_published(ticks[i].source);
      if (ticks[i].source == "schedule") metrics_.tick_lateness(std::chrono::duration<double>(now - ticks[i].due_at).count());
    } else {
      metrics_.publish_failed(amqp::to_string(outcomes[i]));
    }
  }
  crash_point("dispatcher.after_confirm");
  if (!confirmed.empty()) execute_retrying(database_, kPublished, {term, confirmed});
  if (confirmed.size() < ticks.size()) {
    log_warn("ticks unconfirmed", {{"count", ticks.size() - confirmed.size()}, {"then", "published again by the next sweep"}});
  }
  return confirmed.size() == ticks.size();
}

bool Outbox::publish_dead_letters(const Term& term, int& count) {
  const auto letters = query(database_, kDeadLetters);
  count = static_cast<int>(letters.size());
  if (letters.empty()) return true;
  std::vector<amqp::Message> messages;
  std::vector<std::string> ids, set_apart;
  for (const auto& letter : letters) {
    auto body = dead_letter_body(letter.body, letter.payload);
    if (!body || body->size() >= amqp::kMaxBodyBytes) {
      set_apart.push_back(letter.id);
      continue;
    }
    messages.push_back(dead_letter_message(letter.id, kProtobufType, std::move(*body), keys_, clock_.now()));
    ids.push_back(letter.id);
  }
  if (!set_apart.empty()) execute_retrying(database_, kStraightToArchive, {term, set_apart});
  crash_point("dispatcher.before_dead_letter");
  const auto outcomes = publisher_.publish_all(std::move(messages), kPublishTimeout);
  crash_point("dispatcher.after_dead_letter");
  std::vector<std::string> confirmed;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (outcomes[i] == amqp::Outcome::confirmed)
      confirmed.push_back(ids[i]);
    else
      metrics_.publish_failed(amqp::to_string(outcomes[i]));
  }
  if (!confirmed.empty()) execute_retrying(database_, kDeadLettersGone, {term, confirmed});
  return confirmed.size() == ids.size();
}

Outbox::Swept Outbox::sweep(const Term& term) {
  Swept swept;
  const auto anything = query(database_, kAnything, {kSweepAfter}).at(0);
  if (anything.ticks) swept.all_confirmed = publish_unpublished(term, swept);
  if (anything.dead_letters) swept.all_confirmed = publish_dead_letters(term, swept.dead_letters) && swept.all_confirmed;
  return swept;
}

bool Outbox::publish_unpublished(const Term& term, Swept& swept) {
  const auto rows = query(database_, kUnpublished, {kSweepAfter});
  std::vector<Signed> ticks;
  std::vector<std::string> unfit;
  for (const auto& row : rows) {
    const TickRow tick{row.id, row.job, row.queue, row.source, row.due_at, row.items, {}, row.batch_size, row.dry_run};
    if (auto ready = sign(tick, clock_.now())) {
      ticks.push_back(std::move(*ready));
    } else {
      log_error("tick dead-lettered", {{"reason", "field_limit"}, {"job", tick.job}, {"tick", tick.id}});
      metrics_.dead_letter("field_limit");
      unfit.push_back(tick.id);
    }
  }
  if (!unfit.empty()) execute_retrying(database_, kUnfit, {term, unfit});
  swept.ticks = static_cast<int>(rows.size());
  swept.more = !rows.empty() && (rows.size() >= kMaxSwept || rows[0].count > static_cast<std::int64_t>(rows.size()));
  return publish(publisher_, term, std::move(ticks));
}

bool Outbox::publish_wake(const TickRow& tick, bool again) {
  auto message = again ? tick_message(tick, keys_, clock_.now()) : wake_message(tick, keys_, clock_.now());
  const bool taken = message && publisher_.publish_unwatched(std::move(*message));
  if (taken) metrics_.tick_published(tick.source);
  return taken;
}

}  // namespace takt
