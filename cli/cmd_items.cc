#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/config/removal.h"

namespace takt {

namespace {

struct ItemFilter {
  std::string job, state, key;
  int limit = 20;
  bool json = false;
};

void list_items(Context& context, const ItemFilter& filter) {
  const auto optional_text = [](const std::string& text) { return text.empty() ? std::nullopt : std::optional(text); };
  // Each source gives its newest; done and running items are in the newest runs.
  const auto rows = context.current_database().exec(
      std::string(R"sql(
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
    run AS (
      SELECT r AS row FROM takt.runs r WHERE r.job_id IN (SELECT id FROM job) AND r.item_ids <> '{}'
         AND ($2::text IS NULL OR $2 = CASE r.status WHEN 'running' THEN 'running' ELSE 'done' END)
         AND ($3::text IS NULL OR $3 = ANY (r.keys)) ORDER BY r.id DESC LIMIT $4),
    in_runs AS (
      SELECT i.id, (r.row).job_id, CASE (r.row).status WHEN 'running' THEN 'running' ELSE 'done' END, i.priority, i.attempt, i.replay,
             i.run_at, (r.row).finished_at, i.key, i.payload
        FROM run r CROSS JOIN LATERAL takt.items_of(r.row) i WHERE $3::text IS NULL OR i.key = $3)
    SELECT i.id, j.name, i.state, i.priority, i.attempts, i.replay,
           (extract(epoch FROM least(greatest(i.run_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59+00')) * 1000000)::bigint,
           (extract(epoch FROM i.finished_at) * 1000000)::bigint, i.key, takt.payload_start(i.payload)
      FROM (SELECT * FROM waiting UNION ALL SELECT * FROM ended UNION ALL SELECT * FROM in_runs) i JOIN takt.jobs j ON j.id = i.job_id
     ORDER BY i.id DESC LIMIT $4
  )sql"),
      Params::of(optional_text(filter.job), optional_text(filter.state), optional_text(filter.key), filter.limit));
  Table table({"item", "job", "state", "priority", "attempts", "replay", "run_at", "finished_at", "key", "payload"});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto time = [&](std::size_t column) {
      return rows.is_null(i, column) ? nlohmann::json(nullptr) : nlohmann::json(format_rfc3339(rows.time(i, column)));
    };
    table.add({rows.integer(i, 0), std::string(rows.text(i, 1)), std::string(rows.text(i, 2)), rows.integer(i, 3), rows.integer(i, 4),
               rows.integer(i, 5), time(6), time(7),
               rows.is_null(i, 8) ? nlohmann::json(nullptr) : nlohmann::json(std::string(rows.text(i, 8))), std::string(rows.text(i, 9))});
  }
  table.print(filter.json, "no items");
}

void show_item(Context& context, std::int64_t id) {
  // Its runs are found by the bounds of what each claimed (runs_items).
  const auto rows = context.current_database().exec(std::string(R"sql(
    WITH held AS (
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
             finished_at, key, payload FROM held),
    history AS (
      SELECT replay, attempt, at, run_id, class, reason, error, duration_ms, next_run_at FROM takt.failed_attempts WHERE item_id = $1
      UNION ALL
      SELECT replay, attempt, finished_at, run_id, class, '', '', duration_ms, NULL FROM held WHERE status <> 'running')
    SELECT jsonb_pretty(to_jsonb(i) || jsonb_build_object('job', j.name, 'history', (SELECT jsonb_agg(to_jsonb(h) ORDER BY h.at) FROM history h)))
      FROM item i JOIN takt.jobs j ON j.id = i.job_id
  )sql"),
                                                    Params::of(id));
  if (rows.empty()) throw CommandFailed("no item " + std::to_string(id) + "; it may be older than retention.history");
  std::cout << rows.text(0, 0) << "\n";
}

// A running item cannot be cancelled: its worker may be at it at this moment.
constexpr Statement kCancel{"items_cancel", R"sql(
  WITH gone AS (
    DELETE FROM takt.items WHERE id = ANY ($1::bigint[]) AND state IN (0, 5, 6) RETURNING *),
  history AS (
    INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_at, enqueued_at, key, payload)
    SELECT id, now(), job_id, 4, 'cancelled', priority, attempt, replay, run_at, enqueued_at, key, payload FROM gone),
  keys AS (
    DELETE FROM takt.item_keys k USING gone g WHERE g.key IS NOT NULL AND k.job_id = g.job_id AND k.key = g.key AND k.item_id = g.id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'cancel', 'item ' || id FROM gone)
  SELECT count(*) FROM gone
)sql"};

constexpr Statement kRetry{"items_retry", R"sql(
  WITH again AS (
    UPDATE takt.items SET state = CASE WHEN state = 6 THEN 6 ELSE 0 END, run_at = now(), attempt = CASE WHEN state = 5 THEN 0 ELSE attempt END,
                          replay = CASE WHEN state = 5 THEN replay + 1 ELSE replay END
     WHERE id = ANY ($1::bigint[]) AND state IN (0, 5, 6) RETURNING id),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'retry', 'item ' || id FROM again)
  SELECT count(*), pg_notify('takt_due', '') FROM again
)sql"};

struct ActingOptions {
  std::vector<std::int64_t> ids;
  std::string job, by;
  bool yes = false;
};

void act_on_ids(Database& database, const ActingOptions& options, const std::string& verb, const Statement& statement,
                const std::string& done) {
  if (!confirm(verb + " " + std::to_string(options.ids.size()) + " items?", options.yes)) throw CommandFailed("nothing done");
  const auto count = database.exec_retrying(statement, Params::of(options.ids, Context::who(options.by))).integer(0, 0);
  std::cout << count << " of " << options.ids.size() << " items " << done << "\n";
  if (count < static_cast<std::int64_t>(options.ids.size())) throw CommandFailed("the others are running, finished or unknown");
}

/// Of a job that was removed, too: what was left of it is ended so.
void cancel_of_job(Database& database, const ActingOptions& options) {
  const auto backlog = backlog_of(database, options.job);
  if (!backlog) throw CommandFailed("there is no job \"" + options.job + "\", and there was none");
  const auto removal = removal_of(database, backlog->job_id);
  const std::string has = backlog->has_items() ? backlog->text() : "no items";
  if (!confirm("cancel what waits of " + options.job + ", which has " + has + "?", options.yes)) throw CommandFailed("nothing done");
  const auto cancelled = cancel_waiting(database, *backlog, {Context::who(options.by), "command line"}, removal);
  std::cout << cancelled.items << " items cancelled\n";
  if (!cancelled.stopped_by.empty())
    throw CommandFailed("stopped before the end: " + cancelled.stopped_by +
                        (cancelled.job_is_back ? "; what is left is its work" : "; repeat the command for the rest"));
}

CLI::App* add_acting(CLI::App* items, const std::string& verb, const std::string& what, ActingOptions& options) {
  auto* command = items->add_subcommand(verb, what);
  command->add_option("id", options.ids, "the items' numbers");
  command->add_option("--by", options.by, "who is acting, for the audit; default: the login name");
  command->add_flag("--yes", options.yes, "do not ask");
  return command;
}

}  // namespace

void add_items(CLI::App& app, Context& context) {
  auto* items = app.add_subcommand("items", "list items, newest first; show, cancel, retry");
  auto filter = std::make_shared<ItemFilter>();
  items->add_option("--job", filter->job, "only this job's");
  items->add_option("--state", filter->state, "pending, running, done, dead, cancelled or blocked")
      ->check(CLI::IsMember({"pending", "running", "done", "dead", "cancelled", "blocked"}));
  items->add_option("--key", filter->key, "only with this key");
  items->add_option("--limit", filter->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
  items->add_flag("--json", filter->json, "as JSON");
  items->require_subcommand(0, 1);
  auto* show = items->add_subcommand("show", "one item with every attempt");
  auto id = std::make_shared<std::int64_t>(0);
  show->add_option("id", *id, "the item's number")->required();
  show->callback([&context, id] { show_item(context, *id); });
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
  retry->get_option("id")->required();
  retry->callback([&context, retried] { act_on_ids(context.current_database(), *retried, "retry", kRetry, "are due now"); });
  items->callback([&context, items, filter] {
    if (items->get_subcommands().empty()) list_items(context, *filter);
  });
}

}  // namespace takt
