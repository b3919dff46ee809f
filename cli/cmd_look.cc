#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/config/apply.h"
#include "core/text.h"

namespace takt {

namespace {

nlohmann::json text_or_null(const Rows& rows, std::size_t row, std::size_t column) {
  if (rows.is_null(row, column)) return nullptr;
  return std::string(rows.text(row, column));
}

nlohmann::json time_or_null(const Rows& rows, std::size_t row, std::size_t column) {
  if (rows.is_null(row, column)) return nullptr;
  return format_rfc3339(std::chrono::floor<std::chrono::seconds>(rows.time(row, column)));
}

void list_jobs(Context& context, bool json) {
  const auto rows = context.current_database().exec(std::string(R"sql(
    SELECT j.name, j.queue, CASE WHEN j.paused THEN 'paused' ELSE 'active' END,
           CASE WHEN j.definition->'handler' ? 'http' THEN 'http ' || (j.definition->'handler'->'http'->>'method') || ' ' || (j.definition->'handler'->'http'->>'url')
                WHEN j.definition->'handler' ? 'native' THEN 'native ' || (j.definition->'handler'->'native'->>'name')
                ELSE 'sql ' || (j.definition->'handler'->'sql'->>'database') END,
           j.batch_size, j.max_attempts, j.concurrency,
           (SELECT count(*) FROM takt.schedules s WHERE s.job_id = j.id),
           (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x),
           (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x)
      FROM takt.jobs j WHERE j.removed_at IS NULL ORDER BY j.name
  )sql"));
  Table table({"job", "queue", "state", "handler", "batch_size", "max_attempts", "concurrency", "schedules", "due", "blocked"});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    table.add({std::string(rows.text(i, 0)), std::string(rows.text(i, 1)), std::string(rows.text(i, 2)), std::string(rows.text(i, 3)),
               rows.integer(i, 4), rows.integer(i, 5), rows.integer(i, 6), rows.integer(i, 7), rows.integer(i, 8), rows.integer(i, 9)});
  }
  table.print(json, "no jobs; define some in takt.yaml and run \"takt apply\"");
}

void list_schedules(Context& context, const std::string& job, bool json) {
  const auto rows = context.current_database().exec(std::string(R"sql(
    SELECT j.name, s.name, s.cron, s.time_zone, s.misfire, CASE WHEN s.paused OR s.job_paused THEN 'paused' ELSE 'active' END,
           (extract(epoch FROM s.next_due) * 1000000)::bigint, (extract(epoch FROM s.last_due) * 1000000)::bigint, s.source
      FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
     WHERE j.removed_at IS NULL AND ($1::text IS NULL OR j.name = $1) ORDER BY j.name, s.name
  )sql"),
                                                    Params::of(job.empty() ? std::nullopt : std::optional(job)));
  Table table({"job", "schedule", "cron", "time_zone", "misfire", "state", "next_due", "last_due", "source"});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    table.add({std::string(rows.text(i, 0)), std::string(rows.text(i, 1)), std::string(rows.text(i, 2)), std::string(rows.text(i, 3)),
               std::string(rows.text(i, 4)), std::string(rows.text(i, 5)), time_or_null(rows, i, 6), time_or_null(rows, i, 7),
               std::string(rows.text(i, 8))});
  }
  table.print(json, "no schedules");
}

struct RunFilter {
  std::string job, status, since;
  int limit = 20;
  bool json = false;
};

void list_runs(Context& context, const RunFilter& filter) {
  const auto since = filter.since.empty() ? std::nullopt : std::optional(parse_moment(filter.since, "--since"));
  const auto optional_text = [](const std::string& text) { return text.empty() ? std::nullopt : std::optional(text); };
  const auto rows =
      context.current_database().exec(std::string(R"sql(
    SELECT r.id, j.name, r.trigger, r.status, r.scanned, r.done, r.noop, r.skipped, r.blocked, r.error, r.dead, r.remaining,
           CASE r.status WHEN 'running' THEN extract(epoch FROM now() - r.started_at) * 1000 ELSE r.duration_ms END,
           (extract(epoch FROM r.started_at) * 1000000)::bigint, r.tick_id, r.errors->0->>'error'
      FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id
     WHERE ($1::text IS NULL OR j.name = $1) AND ($2::text IS NULL OR r.status = $2) AND ($3::timestamptz IS NULL OR r.started_at >= $3)
     ORDER BY r.started_at DESC, r.id DESC LIMIT $4
  )sql"),
                                      Params::of(optional_text(filter.job), optional_text(filter.status), since, filter.limit));
  Table table({"run", "job", "trigger", "status", "scanned", "done", "noop", "skipped", "blocked", "error", "dead", "remaining", "ms",
               "started_at", "tick", "first_error"});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<nlohmann::json> row{rows.integer(i, 0), std::string(rows.text(i, 1)), std::string(rows.text(i, 2)),
                                    std::string(rows.text(i, 3))};
    for (std::size_t column = 4; column <= 11; ++column) row.emplace_back(rows.integer(i, column));
    row.emplace_back(std::llround(rows.real(i, 12)));
    row.push_back(time_or_null(rows, i, 13));
    row.emplace_back(std::string(rows.text(i, 14)));
    row.push_back(text_or_null(rows, i, 15));
    table.add(std::move(row));
  }
  table.print(filter.json, "no runs");
}

void show_run(Context& context, std::int64_t id) {
  const auto rows = context.current_database().exec(
      std::string("SELECT jsonb_pretty(to_jsonb(r) - '{payloads,keys,attempts,replays,priorities,run_ats,enqueued_ats}'::text[] ||"
                  "  jsonb_build_object('job', j.name)) "
                  "FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id WHERE r.id = $1"),
      Params::of(id));
  if (rows.empty()) throw CommandFailed("no run " + std::to_string(id) + "; it may be older than retention.history");
  std::cout << rows.text(0, 0) << "\n";
}

void add_pausing(CLI::App* parent, const std::string& verb, const std::string& what, Context& context,
                 const std::function<void(const std::string&, const std::string&)>& act) {
  auto* command = parent->add_subcommand(verb, verb + " " + what);
  auto name = std::make_shared<std::string>();
  auto by = std::make_shared<std::string>();
  command->add_option("name", *name, what)->required();
  command->add_option("--by", *by, "who is acting, for the audit; default: the login name");
  command->callback([name, by, act, &context] {
    context.configure_logging("takt");
    act(*name, Context::who(*by));
  });
}

}  // namespace

void add_look(CLI::App& app, Context& context) {
  auto* jobs = app.add_subcommand("jobs", "list jobs; pause, resume, run now");
  auto jobs_json = std::make_shared<bool>(false);
  jobs->add_flag("--json", *jobs_json, "as JSON");
  jobs->require_subcommand(0, 1);
  for (const bool paused : {true, false}) {
    add_pausing(jobs, paused ? "pause" : "resume", "a job", context, [&context, paused](const std::string& name, const std::string& who) {
      if (!set_job_paused(context.current_database(), name, paused, who))
        throw CommandFailed("no job named \"" + name + "\"; \"takt jobs\" lists those known");
      std::cout << "job " << name << (paused ? " paused: its items are kept, its schedules do not tick\n" : " resumed\n");
    });
  }
  auto* run = jobs->add_subcommand("run", "publish a tick for a job now");
  auto run_name = std::make_shared<std::string>();
  run->add_option("name", *run_name, "a job")->required();
  run->callback([&context, run_name] { std::cout << "tick " + publish_tick(context, *run_name, 0, false) + " published\n"; });
  jobs->callback([&context, jobs, jobs_json] {
    if (jobs->get_subcommands().empty()) list_jobs(context, *jobs_json);
  });

  auto* schedules = app.add_subcommand("schedules", "list schedules; pause, resume");
  auto schedules_json = std::make_shared<bool>(false);
  auto schedules_job = std::make_shared<std::string>();
  schedules->add_flag("--json", *schedules_json, "as JSON");
  schedules->add_option("--job", *schedules_job, "only this job's");
  schedules->require_subcommand(0, 1);
  for (const bool paused : {true, false}) {
    add_pausing(schedules, paused ? "pause" : "resume", "a schedule, written job/schedule", context,
                [&context, paused](const std::string& name, const std::string& who) {
                  const auto slash = name.find('/');
                  if (slash == std::string::npos) throw UsageError("\"" + printable(name, 100) + "\": write job/schedule");
                  if (!set_schedule_paused(context.current_database(), name.substr(0, slash), name.substr(slash + 1), paused, who)) {
                    throw CommandFailed("no schedule \"" + name + "\"; \"takt schedules\" lists those known");
                  }
                  std::cout << "schedule " << name << (paused ? " paused\n" : " resumed: its next slot is the next after now\n");
                });
  }
  schedules->callback([&context, schedules, schedules_json, schedules_job] {
    if (schedules->get_subcommands().empty()) list_schedules(context, *schedules_job, *schedules_json);
  });

  auto* runs = app.add_subcommand("runs", "list runs, newest first; show one");
  auto filter = std::make_shared<RunFilter>();
  runs->add_option("--job", filter->job, "only this job's");
  runs->add_option("--status", filter->status, "running, completed, locked or failed")
      ->check(CLI::IsMember({"running", "completed", "locked", "failed"}));
  runs->add_option("--since", filter->since, "started since a time or an age (2h)");
  runs->add_option("--limit", filter->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
  runs->add_flag("--json", filter->json, "as JSON");
  runs->require_subcommand(0, 1);
  auto* show = runs->add_subcommand("show", "one run, whole");
  auto id = std::make_shared<std::int64_t>(0);
  show->add_option("id", *id, "the run's number")->required();
  show->callback([&context, id] { show_run(context, *id); });
  runs->callback([&context, runs, filter] {
    if (runs->get_subcommands().empty()) list_runs(context, *filter);
  });
}

}  // namespace takt
