#include "core/config/apply.h"

#include <algorithm>
#include <map>

#include "core/db/query.h"
#include "core/time/cron.h"

namespace takt {

namespace {

using nlohmann::json;

// Serialises everything that changes definitions, so that versions rise in commit order (any constant would do).
constexpr auto kLock = "SELECT pg_advisory_xact_lock(1952541557)";
constexpr auto kToBeCancelled = "; what waits is to be cancelled";
constexpr auto kStay = "; items stay until the job is back";

struct StoredJob {
  std::int64_t id;
  json definition;
  bool removed;
  std::int64_t version;
  bool cancelling;
};
struct StoredSchedule {
  std::int64_t id;
  json fields;
};

struct JobRow {
  std::int64_t id = 0;
  std::string name, definition;
  bool removed = false;
  std::int64_t version = 0;
  bool cancelling = false;
  static constexpr auto fields() {
    return std::tuple(Field("id", &JobRow::id), Field("name", &JobRow::name), Field("definition", &JobRow::definition),
                      Field("removed", &JobRow::removed), Field("version", &JobRow::version), Field("cancelling", &JobRow::cancelling));
  }
};
struct ScheduleRow {
  std::int64_t id = 0;
  std::string job, name, fields_text;  ///< JSON
  static constexpr auto fields() {
    return std::tuple(Field("id", &ScheduleRow::id), Field("job", &ScheduleRow::job), Field("name", &ScheduleRow::name),
                      Field("fields", &ScheduleRow::fields_text));
  }
};
struct Text {
  std::string text;
  static constexpr auto fields() { return std::tuple(Field("text", &Text::text)); }
};
struct Texts {
  std::vector<std::string> texts;
  static constexpr auto fields() { return std::tuple(&Texts::texts); }
};
struct Now {
  Timestamp now{};
  static constexpr auto fields() { return std::tuple(Field("now_us", &Now::now)); }
};
struct Id {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(&Id::id); }
};
struct MadeId {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(Field("id", &MadeId::id)); }
};
struct MadeVersion {
  std::int64_t version = 0;
  static constexpr auto fields() { return std::tuple(Field("version", &MadeVersion::version)); }
};
struct Noted {
  std::string who, action, subject, detail;
  static constexpr auto fields() { return std::tuple(&Noted::who, &Noted::action, &Noted::subject, &Noted::detail); }
};
struct Acted {
  std::string who, action, subject;
  static constexpr auto fields() { return std::tuple(&Acted::who, &Acted::action, &Acted::subject); }
};
struct RemovedJob : Id {
  bool cancelling = false;
  static constexpr auto fields() { return std::tuple_cat(Id::fields(), std::tuple(&RemovedJob::cancelling)); }
};
struct VersionOf : Id {
  std::int64_t version = 0;
  static constexpr auto fields() { return std::tuple_cat(Id::fields(), std::tuple(&VersionOf::version)); }
};
struct PutJob {
  std::string name, queue, definition;
  int batch_size = 0;
  int concurrency = 0;
  int max_attempts = 0;
  Duration dedupe_window{};
  static constexpr auto fields() {
    return std::tuple(&PutJob::name, &PutJob::queue, &PutJob::definition, &PutJob::batch_size, &PutJob::concurrency, &PutJob::max_attempts,
                      &PutJob::dedupe_window);
  }
};
struct PutSchedule {
  std::int64_t job_id = 0;
  std::string name, cron, time_zone, misfire;
  Duration misfire_after{};
  int misfire_limit = 0;
  Duration misfire_max_age{}, jitter{};
  std::optional<std::string> payload, next;
  bool timing_changed = false;
  static constexpr auto fields() {
    return std::tuple(&PutSchedule::job_id, &PutSchedule::name, &PutSchedule::cron, &PutSchedule::time_zone, &PutSchedule::misfire,
                      &PutSchedule::misfire_after, &PutSchedule::misfire_limit, &PutSchedule::misfire_max_age, &PutSchedule::jitter,
                      &PutSchedule::payload, &PutSchedule::next, &PutSchedule::timing_changed);
  }
};
/// Empty `schedule`: all of the job's.
struct Slots {
  std::string job, schedule;
  static constexpr auto fields() { return std::tuple(&Slots::job, &Slots::schedule); }
};
struct Timing {
  std::int64_t id = 0;
  std::string cron, time_zone;
  Timestamp now{};
  static constexpr auto fields() {
    return std::tuple(Field("id", &Timing::id), Field("cron", &Timing::cron), Field("time_zone", &Timing::time_zone),
                      Field("now_us", &Timing::now));
  }
};
struct NextSlot : Id {
  std::optional<std::string> next;
  static constexpr auto fields() { return std::tuple_cat(Id::fields(), std::tuple(&NextSlot::next)); }
};
struct JobName {
  std::string job;
  static constexpr auto fields() { return std::tuple(&JobName::job); }
};
struct JobPaused : JobName {
  bool paused = false;
  static constexpr auto fields() { return std::tuple_cat(JobName::fields(), std::tuple(&JobPaused::paused)); }
};
struct SchedulePaused : Id {
  bool paused = false;
  static constexpr auto fields() { return std::tuple_cat(Id::fields(), std::tuple(&SchedulePaused::paused)); }
};
struct WasPaused {
  std::int64_t id = 0;
  bool paused = false, set_aside = false;
  static constexpr auto fields() {
    return std::tuple(Field("id", &WasPaused::id), Field("paused", &WasPaused::paused), Field("set_aside", &WasPaused::set_aside));
  }
};
struct Freed {
  std::string job, who;
  static constexpr auto fields() { return std::tuple(&Freed::job, &Freed::who); }
};

constexpr Query<NoRequest, JobRow> kJobs{"apply_jobs",
                                         "SELECT id, name, definition::text AS definition, removed_at IS NOT NULL AS removed, version, "
                                         "cancelling FROM takt.jobs WHERE source = 'file'"};
constexpr Query<NoRequest, ScheduleRow> kSchedules{"apply_schedules", R"sql(
  SELECT s.id, j.name AS job, s.name, jsonb_build_object('cron', s.cron, 'time_zone', s.time_zone, 'misfire', s.misfire,
           'misfire_after_ms', (extract(epoch FROM s.misfire_after) * 1000)::bigint, 'misfire_limit', s.misfire_limit,
           'misfire_max_age_ms', (extract(epoch FROM s.misfire_max_age) * 1000)::bigint,
           'jitter_ms', (extract(epoch FROM s.jitter) * 1000)::bigint, 'payload', s.payload::text)::text AS fields
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id WHERE s.source = 'file' AND j.removed_at IS NULL
)sql"};
constexpr Query<Slots, NoRow> kStopSlots{"apply_stop_slots", R"sql(
  UPDATE takt.ticks t SET finished_at = now(), items = NULL
    FROM takt.jobs j
   WHERE j.name = $1 AND t.job_id = j.id AND ($2 = '' OR starts_with(t.id, j.name || '/' || $2 || '@'))
     AND t.source = 'schedule' AND t.published_at IS NULL AND t.finished_at IS NULL AND t.begun_at IS NULL
     AND t.publish_at > now() - interval '1 s'
)sql"};
constexpr Query<Id, NoRow> kNoSchedule{"apply_no_schedule", "DELETE FROM takt.schedules WHERE id = $1"};
constexpr Query<Texts, Text> kPayloads{"apply_payloads",
                                       "SELECT p::jsonb::text AS text FROM unnest($1::text[]) WITH ORDINALITY AS u(p, n) ORDER BY n"};
constexpr Query<NoRequest, Now> kNow{"apply_now", "SELECT (extract(epoch FROM now()) * 1000000)::bigint AS now_us"};
constexpr Query<Noted, NoRow> kNote{
    "apply_note", "INSERT INTO takt.audit (who, origin, action, subject, detail) VALUES ($1, 'file', $2, $3, to_jsonb($4::text))"};
constexpr Query<RemovedJob, MadeVersion> kRemoveJob{"apply_remove_job", R"sql(
  UPDATE takt.jobs SET removed_at = now(), cancelling = $2, version = nextval('takt.definitions_version'), updated_at = now()
   WHERE id = $1 RETURNING version
)sql"};
constexpr Query<PutJob, MadeId> kPutJob{"apply_put_job", R"sql(
  INSERT INTO takt.jobs AS j (name, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source)
  VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7 * interval '1 ms', 'file')
  ON CONFLICT (name) DO UPDATE
     SET queue = excluded.queue, definition = excluded.definition, batch_size = excluded.batch_size, concurrency = excluded.concurrency,
         max_attempts = excluded.max_attempts, dedupe_window = excluded.dedupe_window, removed_at = NULL, cancelling = false,
         version = nextval('takt.definitions_version'), updated_at = now()
   WHERE j.source = 'file'
  RETURNING id
)sql"};
constexpr Query<PutSchedule, NoRow> kPutSchedule{"apply_put_schedule", R"sql(
  INSERT INTO takt.schedules AS s (job_id, name, cron, time_zone, misfire, misfire_after, misfire_limit, misfire_max_age, jitter,
                                   payload, source, job_paused, next_due, next_fire)
  VALUES ($1, $2, $3, $4, $5, $6 * interval '1 ms', $7, $8 * interval '1 ms', $9 * interval '1 ms', $10::jsonb, 'file',
          (SELECT paused FROM takt.jobs WHERE id = $1), $11, $11)
  ON CONFLICT (job_id, name) DO UPDATE
     SET cron = excluded.cron, time_zone = excluded.time_zone, misfire = excluded.misfire, misfire_after = excluded.misfire_after,
         misfire_limit = excluded.misfire_limit, misfire_max_age = excluded.misfire_max_age, jitter = excluded.jitter,
         payload = excluded.payload, source = 'file', job_paused = excluded.job_paused, updated_at = now(),
         next_due = CASE WHEN $12 THEN excluded.next_due ELSE s.next_due END,
         next_fire = CASE WHEN $12 THEN excluded.next_fire ELSE s.next_fire END,
         fault = CASE WHEN $12 THEN NULL ELSE s.fault END
)sql"};
constexpr Query<VersionOf, NoRow> kCancelledAll{"apply_cancelled_all",
                                                "UPDATE takt.jobs SET cancelling = false WHERE id = $1 AND version = $2"};
constexpr Query<Slots, Timing> kTimings{"restart_schedules", R"sql(
  SELECT s.id, s.cron, s.time_zone, (extract(epoch FROM now()) * 1000000)::bigint AS now_us
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE j.name = $1 AND ($2 = '' OR s.name = $2)
)sql"};
constexpr Query<NextSlot, NoRow> kRestart{"restart_schedule",
                                          "UPDATE takt.schedules SET next_due = $2, next_fire = $2, fault = NULL WHERE id = $1"};
constexpr Query<Acted, NoRow> kAudit{"audit_pause",
                                     "INSERT INTO takt.audit (who, origin, action, subject) VALUES ($1, 'command line', $2, $3)"};
constexpr Query<JobName, WasPaused> kJobWasPaused{
    "job_was_paused", "SELECT id, paused, false AS set_aside FROM takt.jobs WHERE name = $1 AND removed_at IS NULL"};
constexpr Query<JobPaused, NoRow> kPauseJob{
    "pause_job", "UPDATE takt.jobs SET paused = $2, version = nextval('takt.definitions_version') WHERE name = $1"};
constexpr Query<JobPaused, NoRow> kPauseJobsSchedules{
    "pause_jobs_schedules", "UPDATE takt.schedules s SET job_paused = $2 FROM takt.jobs j WHERE j.id = s.job_id AND j.name = $1"};
constexpr Query<Slots, WasPaused> kScheduleWasPaused{"schedule_was_paused", R"sql(
  SELECT s.id, s.paused, s.fault IS NOT NULL AS set_aside FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE j.name = $1 AND s.name = $2 AND j.removed_at IS NULL
)sql"};
constexpr Query<SchedulePaused, NoRow> kPauseSchedule{"pause_schedule", "UPDATE takt.schedules SET paused = $2 WHERE id = $1"};
// By failing_destinations' primary key. The workers' circuits hear of it within a second (SharedCircuits::refresh).
constexpr Query<Freed, Count> kFree{"destination_free", R"sql(
  WITH freed AS (
    UPDATE takt.failing_destinations d SET until = now(), freed_at = now() FROM takt.jobs j
     WHERE j.name = $1 AND j.removed_at IS NULL AND d.name = takt.destination_of(j.definition) AND d.opened_at IS NOT NULL
    RETURNING d.name),
  released AS (
    UPDATE takt.jobs SET held_until = NULL
     WHERE name = $1 AND removed_at IS NULL AND held_until > now() AND EXISTS (SELECT 1 FROM freed)),
  noted AS (
    INSERT INTO takt.audit (who, origin, action, subject) SELECT $2, 'command line', 'free', 'job ' || $1 FROM freed),
  told AS (SELECT count(*) AS count, pg_notify('takt_due', $1) FROM freed)
  SELECT count FROM told
)sql"};

/// `payload`: as PostgreSQL writes it, so that equal ones are equal here; nullopt: the tick carries no item.
json schedule_fields(const ScheduleDefinition& schedule, const std::optional<std::string>& payload) {
  return {{"cron", schedule.cron},
          {"time_zone", schedule.time_zone},
          {"misfire", to_string(schedule.misfire)},
          {"misfire_after_ms", schedule.misfire_after.count()},
          {"misfire_limit", schedule.misfire_limit},
          {"misfire_max_age_ms", schedule.misfire_max_age.count()},
          {"jitter_ms", schedule.jitter.count()},
          {"payload", payload ? json(*payload) : json(nullptr)}};
}

std::map<std::string, StoredJob> read_jobs(Session& on) {
  std::map<std::string, StoredJob> jobs;
  for (const auto& row : query(on, kJobs)) jobs[row.name] = {row.id, json::parse(row.definition), row.removed, row.version, row.cancelling};
  return jobs;
}

std::map<std::string, StoredSchedule> read_schedules(Session& on) {
  std::map<std::string, StoredSchedule> schedules;
  for (const auto& row : query(on, kSchedules)) schedules[row.job + "/" + row.name] = {row.id, json::parse(row.fields_text)};
  return schedules;
}

/// "batch_size: 10 → 20, handler.http.url: …" of two flat-or-nested objects.
std::string difference(const json& before, const json& after) {
  const auto old_flat = before.flatten();
  const auto new_flat = after.flatten();
  std::string text;
  const auto show = [&](const std::string& key, const std::string& from, const std::string& to) {
    std::string name = key.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    text += (text.empty() ? "" : ", ") + name + ": " + from + " → " + to;
  };
  for (const auto& [key, value] : new_flat.items()) {
    const auto found = old_flat.find(key);
    if (found == old_flat.end())
      show(key, "none", value.dump());
    else if (*found != value)
      show(key, found->dump(), value.dump());
  }
  for (const auto& [key, value] : old_flat.items()) {
    if (!new_flat.contains(key)) show(key, value.dump(), "none");
  }
  return text;
}

/// The dispatcher stores a slot half a second before it is due, and holds its message until then. A tick that is finished in
/// between changes nothing when it arrives: every worker takes it for a repeat. Where its schedule goes on in time, the
/// dispatcher stores it again. Empty `schedule`: all of the job's.
void stop_slots_stored_ahead(Session& on, const std::string& job, const std::string& schedule) { query(on, kStopSlots, {job, schedule}); }

class Apply {
 public:
  Apply(Session& on, const std::string& who, Removal removal) : on_(on), who_(who), removal_(removal), now_(read_now(on)) {}

  std::vector<DefinitionChange> run(const Config& config) {
    auto jobs = read_jobs(on_);
    auto schedules = read_schedules(on_);
    read_payloads(config);
    for (const auto& job : config.jobs) {
      const std::int64_t id = put_job(job, jobs);
      for (const auto& schedule : job.schedules) put_schedule(id, job, schedule, schedules);
      jobs.erase(job.name);
    }
    for (const auto& [name, stored] : schedules) {
      stop_slots_stored_ahead(on_, name.substr(0, name.find('/')), name.substr(name.find('/') + 1));
      query(on_, kNoSchedule, {stored.id});
      note('-', "schedule " + name, "");
    }
    for (const auto& [name, stored] : jobs) {
      if (!stored.removed)
        remove_job(name, stored.id);
      else if (stored.cancelling && removal_ == Removal::cancel)
        go_on_cancelling(name, stored);
    }
    return std::move(changes_);
  }

 private:
  /// What PostgreSQL makes of the payloads in the file, all with one statement.
  void read_payloads(const Config& config) {
    std::vector<std::string> texts;
    for (const auto& job : config.jobs) {
      for (const auto& schedule : job.schedules) texts.push_back(schedule.payload);
    }
    const auto rows = query(on_, kPayloads, {texts});
    for (std::size_t i = 0; i < texts.size(); ++i) as_stored_[texts[i]] = rows.at(i).text;
  }

  static Timestamp read_now(Session& on) { return query(on, kNow).at(0).now; }

  void note(char sign, const std::string& subject, const std::string& detail) {
    changes_.push_back({sign, subject, detail});
    const auto* action = sign == '+' ? "create" : sign == '-' ? "remove" : "change";
    query(on_, kNote, {who_, action, subject, detail});
  }

  void remove_job(const std::string& name, std::int64_t id) {
    auto backlog = backlog_of(on_, id);
    const bool cancels = backlog.has_items() && removal_ == Removal::cancel;
    std::string detail = backlog.text();
    const auto rows = query(on_, kRemoveJob, {{id}, cancels});
    end_unbegun_ticks(on_, id);
    if (backlog.has_items()) detail += cancels ? kToBeCancelled : kStay;
    note('-', "job " + name, detail);
    changes_.back().backlog = std::move(backlog);
    changes_.back().removal = rows.at(0).version;
  }

  /// An apply before this one was stopped after it had removed the job.
  void go_on_cancelling(const std::string& name, const StoredJob& stored) {
    auto backlog = backlog_of(on_, stored.id);
    if (!backlog.has_items()) return;
    changes_.push_back({'-', "job " + name, backlog.text() + kToBeCancelled, std::move(backlog), stored.version});
  }

  std::int64_t put_job(const JobDefinition& job, std::map<std::string, StoredJob>& stored) {
    const json definition = job_to_json(job);
    const auto found = stored.find(job.name);
    if (found != stored.end() && !found->second.removed && found->second.definition == definition) return found->second.id;
    const auto rows =
        query(on_, kPutJob, {job.name, job.queue, definition.dump(), job.batch_size, job.concurrency, job.max_attempts, job.dedupe_window});
    if (rows.empty()) {
      throw DatabaseError("job " + job.name + " was made by the API; give the one in the file another name", "23505");
    }
    if (found != stored.end() && !found->second.removed)
      note('~', "job " + job.name, difference(found->second.definition, definition));
    else
      note('+', "job " + job.name, "");
    return rows.front().id;
  }

  void put_schedule(std::int64_t job_id, const JobDefinition& job, const ScheduleDefinition& schedule,
                    std::map<std::string, StoredSchedule>& stored) {
    const std::string name = job.name + "/" + schedule.name;
    const json fields = schedule_fields(schedule, job.item_per_tick ? std::optional(as_stored_.at(schedule.payload)) : std::nullopt);
    const auto found = stored.find(name);
    const bool is_new = found == stored.end();
    if (!is_new && found->second.fields == fields) {
      stored.erase(found);
      return;
    }
    const bool timing_changed =
        is_new || found->second.fields["cron"] != fields["cron"] || found->second.fields["time_zone"] != fields["time_zone"];
    std::optional<std::string> next;
    if (timing_changed) {
      const auto cron = Cron::parse(schedule.cron, schedule.time_zone);
      if (const auto slot = std::get<Cron>(cron).next(now_)) next = format_rfc3339(*slot);
      if (!is_new) stop_slots_stored_ahead(on_, job.name, schedule.name);
    }
    query(on_, kPutSchedule,
          {.job_id = job_id,
           .name = schedule.name,
           .cron = schedule.cron,
           .time_zone = schedule.time_zone,
           .misfire = std::string(to_string(schedule.misfire)),
           .misfire_after = schedule.misfire_after,
           .misfire_limit = schedule.misfire_limit,
           .misfire_max_age = schedule.misfire_max_age,
           .jitter = schedule.jitter,
           .payload = job.item_per_tick ? std::optional(schedule.payload) : std::nullopt,
           .next = next,
           .timing_changed = timing_changed});
    note(is_new ? '+' : '~', "schedule " + name, is_new ? schedule.cron : difference(found->second.fields, fields));
    if (!is_new) stored.erase(found);
  }

  Session& on_;
  const std::string& who_;
  const Removal removal_;
  const Timestamp now_;
  std::map<std::string, std::string> as_stored_;  // by the payload's text in the file
  std::vector<DefinitionChange> changes_;
};

/// What it finds of one job's is tried whatever became of another's, unless PostgreSQL is away.
void cancel_leftovers(Database& database, std::vector<DefinitionChange>& changes, const std::string& who) {
  std::string away;
  for (auto& change : changes) {
    if (!change.backlog || !change.backlog->has_items()) continue;
    Cancelled cancelled{0, away};
    if (away.empty()) cancelled = cancel_waiting(database, *change.backlog, {who, "file"}, change.removal);
    if (!cancelled.stopped_by.empty() && !database.healthy()) away = cancelled.stopped_by;
    change.detail = change.backlog->text() + "; " + std::to_string(cancelled.items) + " cancelled";
    change.cancelled = cancelled.items;
    change.not_cancelled = cancelled.stopped_by;
    change.is_back = cancelled.job_is_back;
    if (!cancelled.stopped_by.empty()) continue;
    execute(database, kCancelledAll, {{change.backlog->job_id}, change.removal});
  }
}

/// Thrown to end a transaction without committing it: a dry run's, or one that would remove a job unasked.
struct RolledBack {};

/// Slots of schedules that begin to fire again: from now on, none of those in between. Empty `schedule`: all of the job's.
void restart_schedules(Session& on, const std::string& job, const std::string& schedule) {
  for (const auto& row : query(on, kTimings, {job, schedule})) {
    const auto cron = Cron::parse(row.cron, row.time_zone);
    if (!std::holds_alternative<Cron>(cron)) continue;
    const auto next = std::get<Cron>(cron).next(row.now);
    query(on, kRestart, {{row.id}, next ? std::optional(format_rfc3339(*next)) : std::nullopt});
  }
}

void pause_slots(Session& on, const std::string& job, const std::string& schedule, bool paused) {
  if (paused) {
    stop_slots_stored_ahead(on, job, schedule);
  } else {
    restart_schedules(on, job, schedule);
  }
}

void audit(Session& on, const std::string& who, const std::string& action, const std::string& subject) {
  query(on, kAudit, {who, action, subject});
}

}  // namespace

std::vector<std::string> removed_jobs(const std::vector<DefinitionChange>& changes) {
  std::vector<std::string> jobs;
  for (const auto& change : changes) {
    if (change.backlog) jobs.push_back(change.backlog->job);
  }
  return jobs;
}

std::vector<DefinitionChange> apply_definitions(Database& database, const Config& config, const std::string& who, bool dry_run,
                                                Removal removal) {
  std::vector<DefinitionChange> changes;
  try {
    database.transaction([&](Session& on) {
      on.script(kLock);
      changes = Apply(on, who, removal).run(config);
      if (dry_run || (removal == Removal::refuse && !removed_jobs(changes).empty())) throw RolledBack{};
    });
  } catch (const RolledBack&) {
    return changes;
  }
  if (removal == Removal::cancel) cancel_leftovers(database, changes, who);
  return changes;
}

Pausing set_job_paused(Database& database, const std::string& job, bool paused, const std::string& who) {
  auto outcome = Pausing::unknown;
  database.transaction([&](Session& on) {
    on.script(kLock);
    const auto was = query(on, kJobWasPaused, {job});
    if (was.empty()) return;
    outcome = was.front().paused == paused ? Pausing::was_so : Pausing::changed;
    if (outcome == Pausing::was_so) return;
    query(on, kPauseJob, {{job}, paused});
    query(on, kPauseJobsSchedules, {{job}, paused});
    pause_slots(on, job, "", paused);
    audit(on, who, paused ? "pause" : "resume", "job " + job);
  });
  return outcome;
}

Pausing set_schedule_paused(Database& database, const std::string& job, const std::string& schedule, bool paused, const std::string& who) {
  auto outcome = Pausing::unknown;
  database.transaction([&](Session& on) {
    on.script(kLock);
    const auto was = query(on, kScheduleWasPaused, {job, schedule});
    if (was.empty()) return;
    const bool set_aside = was.front().set_aside;  // resuming looks at it again
    outcome = was.front().paused == paused && (paused || !set_aside) ? Pausing::was_so : Pausing::changed;
    if (outcome == Pausing::was_so) return;
    query(on, kPauseSchedule, {{was.front().id}, paused});
    pause_slots(on, job, schedule, paused);
    audit(on, who, paused ? "pause" : "resume", "schedule " + job + "/" + schedule);
  });
  return outcome;
}

bool free_destination(Database& database, const std::string& job, const std::string& who) {
  return query_retrying(database, kFree, {job, who}).at(0).count > 0;
}

}  // namespace takt
