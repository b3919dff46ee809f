#include <algorithm>
#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/config/apply.h"
#include "core/text/text.h"

namespace takt {

namespace {

/// "billing.renewals/nightly" in its two parts.
std::pair<std::string, std::string> job_and_schedule(const std::string& name) {
  const auto slash = name.find('/');
  if (slash == std::string::npos) throw UsageError("\"" + printable(name, 100) + "\": write job/schedule");
  return {name.substr(0, slash), name.substr(slash + 1)};
}

struct JobLine {
  std::string job, queue, state, handler;
  int batch_size = 0, max_attempts = 0, concurrency = 0;
  std::int64_t schedules = 0, due = 0, blocked = 0;
  std::optional<std::string> held_until, held_for;
  static constexpr auto fields() {
    return std::tuple(Field("job", &JobLine::job), Field("queue", &JobLine::queue), Field("state", &JobLine::state),
                      Field("handler", &JobLine::handler), Field("batch_size", &JobLine::batch_size),
                      Field("max_attempts", &JobLine::max_attempts), Field("concurrency", &JobLine::concurrency),
                      Field("schedule_count", &JobLine::schedules), Field("due", &JobLine::due), Field("blocked", &JobLine::blocked),
                      Field("held_until", &JobLine::held_until), Field("held_for", &JobLine::held_for));
  }
};
constexpr Query<NoRequest, JobLine> kJobs{"jobs_list", R"sql(
  SELECT j.name AS job, j.queue, takt.job_state(j) AS state,
         CASE WHEN j.definition->'handler' ? 'http' THEN 'http ' || (j.definition->'handler'->'http'->>'method') || ' ' || (j.definition->'handler'->'http'->>'url')
              WHEN j.definition->'handler' ? 'native' THEN 'native ' || (j.definition->'handler'->'native'->>'name')
              ELSE 'sql ' || (j.definition->'handler'->'sql'->>'database') END AS handler,
         j.batch_size, j.max_attempts, j.concurrency,
         (SELECT count(*) FROM takt.schedules s WHERE s.job_id = j.id) AS schedule_count,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x) AS due,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x) AS blocked,
         takt.shown(coalesce(h.until, CASE WHEN j.held_until > now() THEN j.held_until END)) AS held_until,
         coalesce(h.error, takt.lately_held_for(j)) AS held_for
    FROM takt.jobs j LEFT JOIN takt.held_jobs h ON h.job_id = j.id WHERE j.removed_at IS NULL ORDER BY j.name
)sql"};

void list_jobs(Context& context, bool json) {
  Table table({"job",
               {"queue", 2},
               "state",
               {"handler", 3},
               {"batch_size", 5},
               {"max_attempts", 5},
               {"concurrency", 6},
               {"schedule_count", 4},
               "due",
               "blocked",
               {"held_until", 1},
               {"held_for", 1}});
  for (const auto& job : query(context.current_database(), kJobs)) table.add(cells_of(job));
  table.print(json, "no jobs; define some in takt.yaml and run \"takt apply\"");
}

constexpr Query<One<std::string>, Part> kJob{"job_parts", R"sql(
  SELECT p.name, jsonb_pretty(p.value::jsonb) AS pretty, p.value::text AS value
    FROM takt.jobs j LEFT JOIN takt.held_jobs h ON h.job_id = j.id
    LEFT JOIN LATERAL (SELECT who, at FROM takt.audit WHERE subject = 'job ' || j.name AND action = 'pause' ORDER BY id DESC LIMIT 1) a
              ON j.paused
    CROSS JOIN LATERAL (VALUES
      ('job', to_json(j.name)), ('state', to_json(takt.job_state(j))), ('paused_by', to_json(a.who)), ('paused_at', to_json(takt.shown(a.at))),
      ('held_until', to_json(takt.shown(coalesce(h.until, CASE WHEN j.held_until > now() THEN j.held_until END)))), ('held_for', to_json(coalesce(h.error, takt.lately_held_for(j)))), ('failures_in_a_row', to_json(h.failures)),
      ('queue', to_json(j.queue)), ('definition_version', to_json(j.version)), ('updated_at', to_json(takt.shown(j.updated_at))),
      ('definition', j.definition::json),
      ('schedules', (SELECT coalesce(json_agg(json_build_object('schedule', s.name, 'cron', s.cron, 'time_zone', s.time_zone, 'next_due', takt.shown(s.next_due),
                                                       'last_due', takt.shown(s.last_due), 'fault', s.fault) ORDER BY s.name), '[]')
                       FROM takt.schedules s WHERE s.job_id = j.id))) p(name, value)
   WHERE j.name = $1 AND j.removed_at IS NULL
)sql"};

void show_job(Context& context, const std::string& name, bool json) {
  const auto parts = query(context.current_database(), kJob, {name});
  if (parts.empty()) throw no_job(context.database(), name);
  print_parts(parts, json);
}

struct ScheduleLine {
  std::string job, schedule, cron, time_zone, misfire, state;
  std::optional<std::string> next_due, last_due;
  std::string source;
  static constexpr auto fields() {
    return std::tuple(Field("job", &ScheduleLine::job), Field("schedule", &ScheduleLine::schedule), Field("cron", &ScheduleLine::cron),
                      Field("time_zone", &ScheduleLine::time_zone), Field("misfire", &ScheduleLine::misfire),
                      Field("state", &ScheduleLine::state), Field("next_due", &ScheduleLine::next_due),
                      Field("last_due", &ScheduleLine::last_due), Field("source", &ScheduleLine::source));
  }
};
constexpr Query<One<std::optional<std::string>>, ScheduleLine> kSchedules{"schedules_list", R"sql(
  SELECT j.name AS job, s.name AS schedule, s.cron, s.time_zone, s.misfire,
         CASE WHEN s.paused OR s.job_paused THEN 'paused' ELSE 'active' END AS state,
         takt.shown(s.next_due) AS next_due, takt.shown(s.last_due) AS last_due, s.source
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE j.removed_at IS NULL AND ($1::text IS NULL OR j.name = $1) ORDER BY j.name, s.name
)sql"};

void list_schedules(Context& context, const std::string& job, bool json) {
  auto& database = context.current_database();
  const auto schedules = query(database, kSchedules, {optional_text(job)});
  if (schedules.empty() && !job.empty()) require_job(database, job);
  Table table({"job", "schedule", {"cron", 1}, {"time_zone", 2}, {"misfire", 3}, "state", "next_due", {"last_due", 1}, {"source", 4}});
  for (const auto& schedule : schedules) table.add(cells_of(schedule));
  table.print(json, "no schedules");
}

struct OfSchedule {
  std::string job, schedule;
  static constexpr auto fields() { return std::tuple(&OfSchedule::job, &OfSchedule::schedule); }
};
constexpr Query<OfSchedule, Part> kSchedule{"schedule_parts", R"sql(
  SELECT p.name, jsonb_pretty(p.value::jsonb) AS pretty, p.value::text AS value
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
    CROSS JOIN LATERAL (VALUES
      ('job', to_json(j.name)), ('schedule', to_json(s.name)),
      ('state', to_json(CASE WHEN s.paused OR s.job_paused THEN 'paused' ELSE 'active' END)), ('cron', to_json(s.cron)),
      ('time_zone', to_json(s.time_zone)), ('next_due', to_json(takt.shown(s.next_due))), ('last_due', to_json(takt.shown(s.last_due))),
      ('fault', to_json(s.fault)), ('misfire', to_json(s.misfire)), ('jitter_ms', to_json((extract(epoch FROM s.jitter) * 1000)::bigint)),
      ('payload', s.payload::json), ('source', to_json(s.source)),
      ('last_slots', (SELECT coalesce(json_agg(json_build_object('due_at', r.due_at, 'tick', r.tick_id,
                                                                 'begun_at', takt.shown(r.started_at), 'run', r.id, 'worker', r.worker)
                                               ORDER BY r.due_at DESC), '[]')
                        FROM (SELECT *, substring(tick_id FROM '@(.*)$') AS due_at
                                FROM (SELECT id, tick_id, started_at, worker FROM takt.runs WHERE job_id = j.id
                                       ORDER BY started_at DESC LIMIT 1000) newest
                               WHERE starts_with(tick_id, j.name || '/' || s.name || '@') ORDER BY due_at DESC LIMIT 5) r))) p(name, value)
   WHERE j.name = $1 AND s.name = $2 AND j.removed_at IS NULL
)sql"};

void show_schedule(Context& context, const std::string& name, bool json) {
  const auto [job, schedule] = job_and_schedule(name);
  const auto parts = query(context.current_database(), kSchedule, {job, schedule});
  if (parts.empty()) throw CommandFailed("no schedule \"" + printable(name, 200) + "\"; \"takt schedules list\" lists those known");
  print_parts(parts, json);
}

struct RunFilter {
  std::string job, status, worker, since;
  int limit = 20;
  bool json = false;
};

constexpr Query<One<std::string>, Answer> kWorkerKnown{"worker_known", R"sql(
  SELECT EXISTS (SELECT FROM takt.services WHERE $1 IN (id, host, id || '@' || host))
      OR EXISTS (SELECT FROM takt.runs WHERE started_at > now() - interval '1 day'
                    AND $1 IN (worker, split_part(worker, '@', 1), split_part(worker, '@', 2))) AS is_so
)sql"};

/// A name that no service bears, and no run of the last day, is most likely mistyped.
void require_worker(Database& database, const std::string& name) {
  if (query(database, kWorkerKnown, {name}).at(0).is_so) return;
  throw CommandFailed("no worker \"" + printable(name, 100) +
                      "\" lives or made a run within a day; \"takt services\" lists those that live");
}

struct WhichRuns {
  std::optional<std::string> job, status;
  std::optional<Timestamp> since;
  std::optional<std::string> worker;
  int limit = 0;
  static constexpr auto fields() {
    return std::tuple(&WhichRuns::job, &WhichRuns::status, &WhichRuns::since, &WhichRuns::worker, &WhichRuns::limit);
  }
};
struct RunLine {
  std::int64_t run = 0;
  std::string job, trigger, status, worker;
  int scanned = 0, done = 0, noop = 0, skipped = 0, blocked = 0, failed = 0, dead = 0, remaining = 0;
  std::int64_t ms = 0;
  std::string started_at, tick;
  std::optional<std::string> first_error;
  static constexpr auto fields() {
    return std::tuple(Field("run", &RunLine::run), Field("job", &RunLine::job), Field("trigger", &RunLine::trigger),
                      Field("status", &RunLine::status), Field("worker", &RunLine::worker), Field("scanned", &RunLine::scanned),
                      Field("done", &RunLine::done), Field("noop", &RunLine::noop), Field("skipped", &RunLine::skipped),
                      Field("blocked", &RunLine::blocked), Field("failed", &RunLine::failed), Field("dead", &RunLine::dead),
                      Field("remaining", &RunLine::remaining), Field("ms", &RunLine::ms), Field("started_at", &RunLine::started_at),
                      Field("tick", &RunLine::tick), Field("first_error", &RunLine::first_error));
  }
};
constexpr Query<WhichRuns, RunLine> kRuns{"runs_list", R"sql(
  SELECT r.id AS run, j.name AS job, r.trigger, r.status, r.worker, r.scanned, r.done, r.noop, r.skipped, r.blocked, r.error AS failed,
         r.dead, r.remaining,
         round(CASE r.status WHEN 'running' THEN extract(epoch FROM now() - r.started_at) * 1000 ELSE r.duration_ms END)::bigint AS ms,
         takt.shown(r.started_at) AS started_at, r.tick_id AS tick, r.errors->0->>'error' AS first_error
    FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id
   WHERE ($1::text IS NULL OR j.name = $1) AND ($2::text IS NULL OR r.status = $2) AND ($3::timestamptz IS NULL OR r.started_at >= $3)
     AND ($4::text IS NULL OR r.worker = $4 OR starts_with(r.worker, $4 || '@') OR split_part(r.worker, '@', 2) = $4)
   ORDER BY r.started_at DESC, r.id DESC LIMIT $5
)sql"};

void list_runs(Context& context, const RunFilter& filter) {
  WhichRuns which{.job = optional_text(filter.job),
                  .status = optional_text(filter.status),
                  .since = {},
                  .worker = optional_text(filter.worker),
                  .limit = filter.limit};
  if (!filter.since.empty()) which.since = parse_moment(filter.since, "--since", [&] { return context.now(); });
  auto& database = context.current_database();
  const auto runs = query(database, kRuns, which);
  if (runs.empty() && !filter.job.empty()) require_job(database, filter.job);
  if (runs.empty() && !filter.worker.empty()) require_worker(database, filter.worker);
  Table table({"run",
               "job",
               {"trigger", 4},
               "status",
               {"worker", 5},
               {"scanned", 2},
               {"done", 1},
               {"noop", 6},
               {"skipped", 6},
               {"blocked", 3},
               {"failed", 1},
               {"dead", 1},
               {"remaining", 3},
               {"ms", 2},
               "started_at",
               {"tick", 7},
               "first_error"});
  for (const auto& run : runs) table.add(cells_of(run));
  table.print(filter.json, "no runs");
}

constexpr Query<One<std::int64_t>, Part> kRun{"run_parts", R"sql(
  SELECT p.name, jsonb_pretty(p.value::jsonb) AS pretty, p.value::text AS value
    FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id
    CROSS JOIN LATERAL (VALUES
      ('run', to_json(r.id)), ('job', to_json(j.name)), ('trigger', to_json(r.trigger)), ('status', to_json(r.status)),
      ('worker', to_json(r.worker)), ('tick', to_json(r.tick_id)), ('started_at', to_json(takt.shown(r.started_at))),
      ('finished_at', to_json(takt.shown(r.finished_at))), ('ms', to_json(round(CASE r.status WHEN 'running' THEN extract(epoch FROM now() - r.started_at) * 1000 ELSE r.duration_ms END)::bigint)), ('dry_run', to_json(r.dry_run)),
      ('scanned', to_json(r.scanned)), ('done', to_json(r.done)), ('noop', to_json(r.noop)), ('skipped', to_json(r.skipped)),
      ('blocked', to_json(r.blocked)), ('failed', to_json(r.error)), ('dead', to_json(r.dead)), ('handed_back', to_json(r.handed_back)),
      ('remaining', to_json(r.remaining)), ('oldest_age_s', to_json(r.oldest_age_s)), ('reported', r.reported::json),
      ('items', to_json(r.item_ids)), ('errors', coalesce(r.errors::json, '[]'))) p(name, value)
   WHERE r.id = $1
)sql"};

void show_run(Context& context, std::int64_t id, bool json) {
  const auto parts = query(context.current_database(), kRun, {id});
  if (parts.empty()) throw CommandFailed("no run " + std::to_string(id) + "; it may be older than retention.history");
  print_parts(parts, json);
}

void add_pausing(CLI::App* parent, const std::string& verb, const std::string& what, Context& context,
                 const std::function<nlohmann::json(const std::string&, const std::string&)>& act) {
  auto* command = parent->add_subcommand(verb, verb + " " + what);
  auto name = std::make_shared<std::string>();
  auto by = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  command->add_option("name", *name, what)->required();
  command->add_option("--by", *by, "who is acting, for the audit; default: the login name");
  command->add_flag("--json", *json, "the outcome as JSON");
  command->callback([name, by, json, act, &context] {
    context.configure_logging("takt");
    const auto outcome = act(*name, Context::who(*by));
    say(*json, outcome, outcome.at("text"));
  });
}

nlohmann::json pause_job(Database& database, const std::string& name, const std::string& who) {
  const auto outcome = set_job_paused(database, name, true, who);
  if (outcome == Pausing::unknown) throw no_job(database, name);
  const bool changed = outcome == Pausing::changed;
  return {{"job", name},
          {"paused", true},
          {"changed", changed},
          {"text", "job " + name + (changed ? " paused: its items are kept, its schedules do not tick" : " was paused already")}};
}

/// Also of a job that is held: its destination is tried again at once.
nlohmann::json resume_job(Database& database, const std::string& name, const std::string& who) {
  const auto outcome = set_job_paused(database, name, false, who);
  if (outcome == Pausing::unknown) throw no_job(database, name);
  const bool changed = outcome == Pausing::changed, freed = free_destination(database, name, who);
  return {{"job", name},
          {"paused", false},
          {"changed", changed},
          {"freed", freed},
          {"text", "job " + name +
                       (changed ? " resumed"
                        : freed ? " is not paused"
                                : " is neither paused nor held") +
                       (freed ? "; its destination, which was left alone, is tried again now" : "")}};
}

void add_jobs(CLI::App& app, Context& context) {
  auto* jobs = app.add_subcommand("jobs", "list jobs; show one, pause, resume, run now");
  auto json = std::make_shared<bool>(false);
  add_listing(
      jobs, [json](CLI::App* command) { command->add_flag("--json", *json, "as JSON"); }, [&context, json] { list_jobs(context, *json); });
  add_showing<std::string>(jobs, "one job: its state and why, its definition and schedules", "a job",
                           [&context](const std::string& name, bool as_json) { show_job(context, name, as_json); });
  for (const bool paused : {true, false}) {
    add_pausing(jobs, paused ? "pause" : "resume", "a job", context, [&context, paused](const std::string& name, const std::string& who) {
      return paused ? pause_job(context.current_database(), name, who) : resume_job(context.current_database(), name, who);
    });
  }
  auto* run = jobs->add_subcommand("run", "publish a tick for a job now");
  auto tick = std::make_shared<TickOptions>();
  run->add_option("name", tick->job, "a job")->required();
  run->add_flag("--json", tick->json, "the outcome as JSON");
  run->callback([&context, tick] { publish_tick(context, *tick); });
}

void add_schedules(CLI::App& app, Context& context) {
  auto* schedules = app.add_subcommand("schedules", "list schedules; show one, pause, resume");
  auto json = std::make_shared<bool>(false);
  auto job = std::make_shared<std::string>();
  add_listing(
      schedules,
      [json, job](CLI::App* command) {
        command->add_flag("--json", *json, "as JSON");
        command->add_option("--job", *job, "only this job's");
      },
      [&context, json, job] { list_schedules(context, *job, *json); });
  add_showing<std::string>(schedules, "one schedule with its last slots", "a schedule, written job/schedule",
                           [&context](const std::string& name, bool as_json) { show_schedule(context, name, as_json); });
  for (const bool paused : {true, false}) {
    add_pausing(schedules, paused ? "pause" : "resume", "a schedule, written job/schedule", context,
                [&context, paused](const std::string& name, const std::string& who) {
                  const auto [of, schedule] = job_and_schedule(name);
                  const auto outcome = set_schedule_paused(context.current_database(), of, schedule, paused, who);
                  if (outcome == Pausing::unknown)
                    throw CommandFailed("no schedule \"" + printable(name, 200) + "\"; \"takt schedules list\" lists those known");
                  const bool changed = outcome == Pausing::changed;
                  const std::string was = paused ? " was paused already" : " was not paused";
                  return nlohmann::json{{"job", of},
                                        {"schedule", schedule},
                                        {"paused", paused},
                                        {"changed", changed},
                                        {"text", "schedule " + name +
                                                     (!changed ? was
                                                      : paused ? " paused"
                                                               : " resumed: its next slot is the next after now")}};
                });
  }
}

void add_runs(CLI::App& app, Context& context) {
  auto* runs = app.add_subcommand("runs", "list runs, newest first; show one");
  auto filter = std::make_shared<RunFilter>();
  add_listing(
      runs,
      [filter](CLI::App* command) {
        command->add_option("--job", filter->job, "only this job's");
        command->add_option("--status", filter->status, "running, completed, locked or failed")
            ->check(CLI::IsMember({"running", "completed", "locked", "failed"}));
        command->add_option("--worker", filter->worker, "only of this worker, by id or host");
        command->add_option("--since", filter->since, "started since a time or an age (2h)");
        command->add_option("--limit", filter->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
        command->add_flag("--json", filter->json, "as JSON");
      },
      [&context, filter] { list_runs(context, *filter); });
  add_showing<std::int64_t>(runs, "one run, whole", "the run's number",
                            [&context](std::int64_t id, bool json) { show_run(context, id, json); });
}

struct JobName {
  std::string name;
  static constexpr auto fields() { return std::tuple(Field("name", &JobName::name)); }
};
/// Also of a job that is gone, where letters of it are kept.
constexpr Query<One<std::string>, JobName> kJobNames{
    "job_names", "SELECT name FROM takt.jobs UNION SELECT DISTINCT job FROM takt.dead_letters WHERE job = $1"};

}  // namespace

void require_job(Database& database, const std::string& name) {
  std::vector<std::string> known;
  for (auto& job : query(database, kJobNames, {name})) known.push_back(std::move(job.name));
  if (std::find(known.begin(), known.end(), name) != known.end()) return;
  const auto meant = nearest(name, known);
  throw CommandFailed("no job named \"" + printable(name, 100) + "\"" + (meant.empty() ? "" : "; did you mean \"" + meant + "\"?") +
                      "; \"takt jobs list\" lists those known");
}

CommandFailed no_job(Database& database, const std::string& name) {
  require_job(database, name);
  return CommandFailed("job \"" + name + "\" was removed; apply one of that name to have it back");
}

void say(bool json, const nlohmann::json& outcome, const std::string& text) { std::cout << (json ? outcome.dump() : text) << "\n"; }

std::optional<std::string> optional_text(const std::string& text) { return text.empty() ? std::nullopt : std::optional(text); }

void add_listing(CLI::App* parent, const std::function<void(CLI::App*)>& add_options, const std::function<void()>& list) {
  parent->require_subcommand(0, 1);
  add_options(parent);
  auto* command = parent->add_subcommand("list", "the same as without a verb");
  add_options(command);
  command->callback(list);
  // What another verb does not know would be taken as the list's: nothing may be done to more than was meant.
  parent->parse_complete_callback([parent] {
    for (const auto* verb : parent->get_subcommands()) {
      if (verb->get_name() == "list") continue;
      for (const auto* option : parent->get_options()) {
        if (option->count() > 0)
          throw UsageError(verb->get_option_no_throw(option->get_name()) != nullptr
                               ? option->get_name() + " stands before \"" + verb->get_name() + "\"; write it behind"
                               : "\"takt " + parent->get_name() + " " + verb->get_name() + "\" takes no " + option->get_name());
      }
    }
  });
  parent->callback([parent, list] {
    if (parent->get_subcommands().empty()) list();
  });
}

void add_look(CLI::App& app, Context& context) {
  add_jobs(app, context);
  add_schedules(app, context);
  add_runs(app, context);
}

}  // namespace takt
