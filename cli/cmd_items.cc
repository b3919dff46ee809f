#include "cli/commands.h"
#include "cli/table.h"
#include "core/config/removal.h"
#include "core/db/query.h"

namespace takt {

namespace {

struct ItemFilter {
  std::string job, state, key;
  int limit = 20;
  bool json = false;
};

struct WhichItems {
  std::optional<std::string> job, state, key;
  int limit = 0;
  static constexpr auto fields() { return std::tuple(&WhichItems::job, &WhichItems::state, &WhichItems::key, &WhichItems::limit); }
};
struct ItemLine {
  std::int64_t item = 0;
  std::string job, state;
  int priority = 0, attempts = 0, replay = 0;
  std::string run_at;
  std::optional<std::string> finished_at, key;
  std::string payload_start;
  static constexpr auto fields() {
    return std::tuple(Field("item", &ItemLine::item), Field("job", &ItemLine::job), Field("state", &ItemLine::state),
                      Field("priority", &ItemLine::priority), Field("attempts", &ItemLine::attempts), Field("replay", &ItemLine::replay),
                      Field("run_at", &ItemLine::run_at), Field("finished_at", &ItemLine::finished_at), Field("key", &ItemLine::key),
                      Field("payload_start", &ItemLine::payload_start));
  }
};

// Each source gives its newest. Done and running items are in the rows of runs, which are looked up by the largest id that each
// claimed: runs with the largest ones hold the newest items. Three times as many runs are taken as items are asked for, since
// the item with the largest id may have left its run; and no more than the newest 10,000 runs are looked at. Numbers of runs are
// given to workers in blocks, so they are in order of time only by and large.
std::string items_sql(bool of_one_job) {
  return std::string(R"sql(
  WITH job AS (SELECT id FROM takt.jobs WHERE $1::text IS NULL OR name = $1),
  waiting AS (
    SELECT i.id, i.job_id, takt.state_name(i.state) AS state, i.priority, i.attempt AS attempts, i.replay, i.run_at,
           NULL::timestamptz AS finished_at, i.key, i.payload
      FROM takt.items i WHERE i.job_id IN (SELECT id FROM job) AND ($2::text IS NULL OR takt.state_name(i.state) = $2)
       AND ($3::text IS NULL OR i.key = $3) ORDER BY i.id DESC LIMIT $4),
  ended AS (
    SELECT i.id, i.job_id, takt.state_name(i.state), i.priority, i.attempts, i.replay, i.run_at, i.finished_at, i.key, i.payload
      FROM takt.ended_items i WHERE i.job_id IN (SELECT id FROM job) AND ($2::text IS NULL OR takt.state_name(i.state) = $2)
       AND ($3::text IS NULL OR i.key = $3) ORDER BY i.id DESC LIMIT $4),
  newest AS (
    SELECT r.id, r.started_at, r.item_max FROM takt.runs r
     WHERE r.job_id )sql") +
         (of_one_job ? "=" : "IN") + R"sql( (SELECT id FROM job) AND r.item_ids <> '{}'
       AND ($2::text IS NULL OR $2 = CASE r.status WHEN 'running' THEN 'running' ELSE 'done' END)
       AND ($3::text IS NULL OR $3 = ANY (r.keys)) ORDER BY )sql" +
         (of_one_job ? "r.started_at" : "r.id") + R"sql( DESC LIMIT 10000),
  run AS (
    SELECT r AS row FROM (SELECT id, started_at FROM newest ORDER BY item_max DESC LIMIT 3 * $4 + 20) n
      JOIN takt.runs r ON r.id = n.id AND r.started_at = n.started_at),
  in_runs AS (
    SELECT i.id, (r.row).job_id, CASE (r.row).status WHEN 'running' THEN 'running' ELSE 'done' END, i.priority, i.attempt, i.replay,
           i.run_at, (r.row).finished_at, i.key, i.payload
      FROM run r CROSS JOIN LATERAL takt.items_of(r.row) i WHERE $3::text IS NULL OR i.key = $3)
  SELECT i.id AS item, j.name AS job, i.state, i.priority, i.attempts, i.replay, takt.shown(i.run_at) AS run_at,
         takt.shown(i.finished_at) AS finished_at, i.key, takt.payload_start(i.payload) AS payload_start
    FROM (SELECT * FROM waiting UNION ALL SELECT * FROM ended UNION ALL SELECT * FROM in_runs) i JOIN takt.jobs j ON j.id = i.job_id
   ORDER BY i.id DESC LIMIT $4
  )sql";
}

void list_items(Context& context, const ItemFilter& filter) {
  auto& database = context.current_database();
  const auto sql = items_sql(!filter.job.empty());
  const Query<WhichItems, ItemLine> list{filter.job.empty() ? "items_list" : "items_list_of_job", sql.c_str()};
  const auto items =
      query(database, list, {optional_text(filter.job), optional_text(filter.state), optional_text(filter.key), filter.limit});
  if (items.empty() && !filter.job.empty()) require_job(database, filter.job);
  Table table({"item",
               "job",
               "state",
               {"priority", 4},
               "attempts",
               {"replay", 4},
               {"run_at", 2},
               {"finished_at", 1},
               {"key", 1},
               {"payload_start", 3}});
  for (const auto& item : items) table.add(cells_of(item));
  table.print(filter.json, "no items");
}

// Its runs are found by the bounds of what each claimed (runs_items).
constexpr Query<One<std::int64_t>, Part> kItem{"item_parts", R"sql(
  WITH claimed AS (
    SELECT r.job_id, r.status, r.id AS run_id, r.finished_at, h.*, CASE WHEN h.id = ANY (r.noops) THEN 'noop' ELSE 'done' END AS class
      FROM takt.runs r CROSS JOIN LATERAL takt.items_of(r) h
     WHERE r.item_min <= $1 AND r.item_max >= $1 AND $1 = ANY (r.item_ids) AND h.id = $1),
  item AS (
    SELECT id, job_id, takt.state_name(state) AS state, priority, attempt AS attempts, replay, NULL::bigint AS run_id, run_at, enqueued_at,
           NULL::timestamptz AS finished_at, key, payload FROM takt.items WHERE id = $1
    UNION ALL
    SELECT id, job_id, takt.state_name(state), priority, attempts, replay, run_id, run_at, enqueued_at, finished_at, key, payload
      FROM takt.ended_items WHERE id = $1
    UNION ALL
    SELECT id, job_id, CASE status WHEN 'running' THEN 'running' ELSE 'done' END, priority, attempt, replay, run_id, run_at, enqueued_at,
           finished_at, key, payload FROM claimed),
  history AS (
    SELECT replay, attempt, at, run_id, class, reason, error, duration_ms, next_run_at FROM takt.failed_attempts WHERE item_id = $1
    UNION ALL
    SELECT replay, attempt, finished_at, run_id, class, '', '', duration_ms, NULL FROM claimed WHERE status <> 'running')
  SELECT p.name, jsonb_pretty(p.value::jsonb) AS pretty, p.value::text AS value
    FROM item i JOIN takt.jobs j ON j.id = i.job_id
    CROSS JOIN LATERAL (VALUES
      ('item', to_json(i.id)), ('job', to_json(j.name)), ('state', to_json(i.state)), ('key', to_json(i.key)),
      ('priority', to_json(i.priority)), ('attempts', to_json(i.attempts)), ('replay', to_json(i.replay)), ('run', to_json(i.run_id)),
      ('run_at', to_json(takt.shown(i.run_at))), ('enqueued_at', to_json(takt.shown(i.enqueued_at))),
      ('finished_at', to_json(takt.shown(i.finished_at))), ('payload', i.payload::json),
      ('history', (SELECT coalesce(json_agg(json_build_object('at', takt.shown(h.at), 'attempt', h.attempt, 'replay', h.replay, 'run', h.run_id,
                                                     'class', h.class, 'ms', round(h.duration_ms)::bigint, 'next_run_at', takt.shown(h.next_run_at),
                                                     'reason', h.reason, 'error', h.error) ORDER BY h.at), '[]') FROM history h))) p(name, value)
)sql"};

void show_item(Context& context, std::int64_t id, bool json) {
  const auto parts = query(context.current_database(), kItem, {id});
  if (parts.empty()) throw CommandFailed("no item " + std::to_string(id) + "; it may be older than retention.history");
  print_parts(parts, json);
}

struct ByIds {
  std::vector<std::int64_t> ids;
  std::string who;
  static constexpr auto fields() { return std::tuple(&ByIds::ids, &ByIds::who); }
};
/// Until when a job is held, if it is.
struct HeldJob {
  std::optional<std::string> job;
  std::string until;
};
/// How many were acted on, and a job of theirs that is held.
struct Acted : HeldJob {
  std::int64_t count = 0;
  static constexpr auto fields() {
    return std::tuple(Field("count", &Acted::count), Field("job", &HeldJob::job), Field("until", &HeldJob::until));
  }
};
struct OfJob {
  std::int64_t job_id = 0;
  static constexpr auto fields() { return std::tuple(&OfJob::job_id); }
};
struct HeldRow : HeldJob {
  static constexpr auto fields() { return std::tuple(Field("job", &HeldJob::job), Field("until", &HeldJob::until)); }
};
struct JobName {
  std::string job;
  static constexpr auto fields() { return std::tuple(&JobName::job); }
};
struct FoundJob {
  std::int64_t id = 0;
  std::string now;
  static constexpr auto fields() { return std::tuple(Field("id", &FoundJob::id), Field("now", &FoundJob::now)); }
};
struct Between : OfJob {
  int state = 0;
  std::string after, until;
  static constexpr auto fields() { return std::tuple_cat(OfJob::fields(), std::tuple(&Between::state, &Between::after, &Between::until)); }
};
struct Priority {
  int priority = 0;
  std::int64_t count = 0;
  static constexpr auto fields() { return std::tuple(Field("priority", &Priority::priority), Field("count", &Priority::count)); }
};
struct RetrySet : OfJob {
  int state = 0, priority = 0;
  std::string run_at;
  std::int64_t id = 0, most = 0;
  std::string who, job, until;
  static constexpr auto fields() {
    return std::tuple_cat(OfJob::fields(), std::tuple(&RetrySet::state, &RetrySet::priority, &RetrySet::run_at, &RetrySet::id,
                                                      &RetrySet::most, &RetrySet::who, &RetrySet::job, &RetrySet::until));
  }
};
/// How many were due later, how many were looked at, and the last of these.
struct RetriedSet {
  std::int64_t again = 0, chosen = 0;
  std::string run_at;
  std::int64_t id = 0;
  static constexpr auto fields() {
    return std::tuple(Field("again", &RetriedSet::again), Field("chosen", &RetriedSet::chosen), Field("run_at", &RetriedSet::run_at),
                      Field("id", &RetriedSet::id));
  }
};

// A running item cannot be cancelled: its worker may be at it at this moment.
constexpr Query<ByIds, Acted> kCancel{"items_cancel", R"sql(
  WITH gone AS (
    DELETE FROM takt.items WHERE id = ANY ($1::bigint[]) AND state IN (0, 5, 6) RETURNING *),
  history AS (
    INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_at, enqueued_at, key, payload)
    SELECT id, now(), job_id, 4, 'cancelled', priority, attempt, replay, run_at, enqueued_at, key, payload FROM gone),
  keys AS (
    DELETE FROM takt.item_keys k USING gone g WHERE g.key IS NOT NULL AND k.job_id = g.job_id AND k.key = g.key AND k.item_id = g.id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'cancel', 'item ' || id FROM gone)
  SELECT count(*) AS count, NULL::text AS job, NULL::text AS until FROM gone
)sql"};

constexpr Query<ByIds, Acted> kRetry{"items_retry", R"sql(
  WITH again AS (
    UPDATE takt.items SET state = CASE WHEN state = 6 THEN 6 ELSE 0 END, run_at = now(), attempt = CASE WHEN state = 5 THEN 0 ELSE attempt END,
                          replay = CASE WHEN state = 5 THEN replay + 1 ELSE replay END
     WHERE id = ANY ($1::bigint[]) AND state IN (0, 5, 6) RETURNING id, job_id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'retry', 'item ' || id FROM again),
  held AS (
    SELECT h.job, h.until FROM takt.held_jobs h WHERE h.job_id IN (SELECT job_id FROM again) ORDER BY h.job LIMIT 1),
  told AS MATERIALIZED (SELECT pg_notify('takt_due', ''))
  SELECT (SELECT count(*) FROM again) AS count, h.job, takt.shown(h.until) AS until FROM told LEFT JOIN held h ON true
)sql"};

constexpr std::int64_t kRetriedASet = 1000;

// One priority's part of items_due, from a place in it on: what is due already is not walked over, and what comes back, since it
// failed again, lies behind that place or after $9. A row that somebody holds at this moment is passed over.
constexpr Query<RetrySet, RetriedSet> kRetryOfJob{"items_retry_of_job", R"sql(
  WITH chosen AS (
    SELECT i.state, i.job_id, i.priority, i.run_at, i.id FROM takt.items i
     WHERE i.job_id = $1 AND i.state = $2 AND i.priority = $3 AND (i.run_at, i.id) > ($4::timestamptz, $5::bigint) AND i.run_at <= $9::timestamptz
     ORDER BY i.run_at, i.id LIMIT $6 FOR UPDATE SKIP LOCKED),
  again AS (
    UPDATE takt.items i SET state = 0, run_at = now(), attempt = CASE WHEN s.state = 5 THEN 0 ELSE i.attempt END,
                            replay = CASE WHEN s.state = 5 THEN i.replay + 1 ELSE i.replay END
      FROM chosen s WHERE i.state = s.state AND i.job_id = s.job_id AND i.priority = s.priority AND i.run_at = s.run_at AND i.id = s.id
    RETURNING i.id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject, detail)
    SELECT $7, 'command line', 'retry', 'job ' || $8, jsonb_build_object('items', count(*), 'state', takt.state_name($2::smallint))
      FROM again HAVING count(*) > 0),
  told AS MATERIALIZED (SELECT pg_notify('takt_due', ''))
  SELECT (SELECT count(*) FROM again) AS again, (SELECT count(*) FROM chosen) AS chosen, l.run_at::text AS run_at, l.id
    FROM told LEFT JOIN LATERAL (SELECT run_at, id FROM chosen ORDER BY run_at DESC, id DESC LIMIT 1) l ON true
)sql"};

// A probe of items_due for each priority that has some.
constexpr Query<Between, Priority> kRetriable{"items_retriable", R"sql(
  WITH RECURSIVE priorities AS (
    (SELECT i.priority FROM takt.items i WHERE i.state = $2 AND i.job_id = $1 ORDER BY i.priority LIMIT 1)
    UNION ALL
    SELECT n.priority FROM priorities p CROSS JOIN LATERAL (
      SELECT i.priority FROM takt.items i WHERE i.state = $2 AND i.job_id = $1 AND i.priority > p.priority ORDER BY i.priority LIMIT 1) n)
  SELECT p.priority, c.count FROM priorities p CROSS JOIN LATERAL (
    SELECT count(*) FROM (SELECT 1 FROM takt.items i
                           WHERE i.state = $2 AND i.job_id = $1 AND i.priority = p.priority AND i.run_at > $3::timestamptz AND i.run_at <= $4::timestamptz
                           LIMIT 100000) x) c
)sql"};

constexpr Query<JobName, FoundJob> kJobNow{"items_job_now", "SELECT id, now()::text AS now FROM takt.jobs WHERE name = $1"};
constexpr Query<OfJob, HeldRow> kHeldUntil{"items_held_until",
                                           "SELECT job, takt.shown(until) AS until FROM takt.held_jobs WHERE job_id = $1"};

struct ActingOptions {
  std::vector<std::int64_t> ids;
  std::string job, state = "blocked", by;
  bool yes = false, json = false;
};

/// There is no job of this name to act on.
CommandFailed nothing_left(Database& database, const std::string& job) {
  require_job(database, job);
  return CommandFailed("nothing is left of job \"" + job + "\" but dead letters");
}

/// What keeps items that are due now from beginning: their job's destination is left alone.
std::string held_note(const HeldJob& held) {
  if (!held.job) return "";
  return "; job " + *held.job + " is held until " + held.until + ": \"takt jobs resume " + *held.job + "\" tries its destination now";
}

void act_on_ids(Database& database, const ActingOptions& options, const std::string& verb, const Query<ByIds, Acted>& statement,
                const std::string& done) {
  const auto asked = std::to_string(options.ids.size()) + (options.ids.size() == 1 ? " item" : " items");
  if (!confirm(verb + " " + asked + "?", options.yes)) throw CommandFailed("nothing done");
  const auto acted = query_retrying(database, statement, {options.ids, Context::who(options.by)}).at(0);
  const auto count = acted.count;
  const std::string note = held_note(acted);
  say(options.json, {{verb == "cancel" ? "cancelled" : "retried", count}}, std::to_string(count) + " of " + asked + " " + done + note);
  if (count < static_cast<std::int64_t>(options.ids.size())) throw CommandFailed("the others are running, finished or unknown");
}

/// Of a job that was removed, too: what was left of it is ended so.
void cancel_of_job(Database& database, const ActingOptions& options) {
  const auto backlog = backlog_of(database, options.job);
  if (!backlog) throw nothing_left(database, options.job);
  const auto removal = removal_of(database, backlog->job_id);
  const std::string has = backlog->has_items() ? backlog->text() : "no items";
  if (!confirm("cancel what waits of " + options.job + ", which has " + has + "?", options.yes)) throw CommandFailed("nothing done");
  const auto cancelled = cancel_waiting(database, *backlog, {Context::who(options.by), "command line"}, removal);
  say(options.json, {{"cancelled", cancelled.items}},
      std::to_string(cancelled.items) + (cancelled.items == 1 ? " item cancelled" : " items cancelled"));
  if (!cancelled.stopped_by.empty())
    throw CommandFailed("stopped before the end: " + cancelled.stopped_by +
                        (cancelled.job_is_back ? "; what is left is its work" : "; repeat the command for the rest"));
}

void retry_of_job(Database& database, const ActingOptions& options) {
  const bool blocked = options.state == "blocked";
  const int state = blocked ? 5 : 0;
  const auto found = query(database, kJobNow, {options.job});
  if (found.empty()) throw nothing_left(database, options.job);
  const auto& [job, now] = found.front();
  // Blocked ones were due once; of those pending, what waits for later.
  const std::string after = blocked ? "-infinity" : now, until = blocked ? now : "infinity";
  const auto priorities = query(database, kRetriable, {{job}, state, after, until});
  std::int64_t waiting = 0;
  bool more = false;
  for (const auto& [priority, count] : priorities) {
    waiting += count;
    more = more || count == 100'000;
  }
  const std::string what =
      std::to_string(waiting) + (more ? " or more " : " ") + options.state + (waiting == 1 ? " item" : " items") + " of " + options.job;
  if (waiting == 0)
    return say(options.json, {{"retried", 0}}, "no " + options.state + " items of " + options.job + (blocked ? "" : " wait for later"));
  if (!confirm("retry " + what + " now?", options.yes)) throw CommandFailed("nothing done");
  std::int64_t done = 0;
  for (const auto& [priority, count] : priorities) {
    RetrySet request{{job}, state, priority, after, 0, kRetriedASet, Context::who(options.by), options.job, until};
    for (std::int64_t chosen = kRetriedASet; chosen == kRetriedASet;) {
      auto set = query_retrying(database, kRetryOfJob, request).at(0);
      done += set.again;
      chosen = set.chosen;
      request.run_at = std::move(set.run_at);
      request.id = set.id;
    }
  }
  std::string note;
  if (!options.json) {
    for (const auto& held : query(database, kHeldUntil, {job})) note = held_note(held);
  }
  say(options.json, {{"retried", done}}, std::to_string(done) + (done == 1 ? " item is" : " items are") + " due now" + note);
}

CLI::App* add_acting(CLI::App* items, const std::string& verb, const std::string& what, ActingOptions& options) {
  auto* command = items->add_subcommand(verb, what);
  command->add_option("id", options.ids, "the items' numbers");
  command->add_option("--by", options.by, "who is acting, for the audit; default: the login name");
  command->add_flag("--yes", options.yes, "do not ask");
  command->add_flag("--json", options.json, "the outcome as JSON");
  return command;
}

}  // namespace

void add_items(CLI::App& app, Context& context) {
  auto* items = app.add_subcommand("items", "list items, newest first; show, cancel, retry");
  auto filter = std::make_shared<ItemFilter>();
  add_listing(
      items,
      [filter](CLI::App* command) {
        command->add_option("--job", filter->job, "only this job's");
        command->add_option("--state", filter->state, "pending, running, done, dead, cancelled or blocked")
            ->check(CLI::IsMember({"pending", "running", "done", "dead", "cancelled", "blocked"}));
        command->add_option("--key", filter->key, "only with this key");
        command->add_option("--limit", filter->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
        command->add_flag("--json", filter->json, "as JSON");
      },
      [&context, filter] { list_items(context, *filter); });
  add_showing<std::int64_t>(items, "one item with every attempt", "the item's number",
                            [&context](std::int64_t id, bool json) { show_item(context, id, json); });
  auto cancelled = std::make_shared<ActingOptions>(), retried = std::make_shared<ActingOptions>();
  auto* cancel = add_acting(items, "cancel", "end items that are pending or blocked", *cancelled);
  cancel->add_option("--job", cancelled->job, "instead of numbers: every one of this job, which may have been removed")
      ->excludes(cancel->get_option("id"));
  cancel->callback([&context, cancelled] {
    if (cancelled->ids.empty() && cancelled->job.empty()) throw UsageError("say which: the items' numbers, or --job");
    if (!cancelled->job.empty())
      cancel_of_job(context.current_database(), *cancelled);
    else
      act_on_ids(context.current_database(), *cancelled, "cancel", kCancel, "cancelled");
  });
  auto* retry = add_acting(items, "retry", "make pending or blocked items due now; blocked ones with fresh attempts", *retried);
  auto* job =
      retry->add_option("--job", retried->job, "instead of numbers: every one of this job in --state")->excludes(retry->get_option("id"));
  retry->add_option("--state", retried->state, "with --job: blocked, or pending: what waits for later")
      ->needs(job)
      ->check(CLI::IsMember({"blocked", "pending"}))
      ->capture_default_str();
  retry->callback([&context, retried] {
    if (retried->ids.empty() && retried->job.empty()) throw UsageError("say which: the items' numbers, or --job");
    if (!retried->job.empty())
      retry_of_job(context.current_database(), *retried);
    else
      act_on_ids(context.current_database(), *retried, "retry", kRetry, "are due now");
  });
}

}  // namespace takt
