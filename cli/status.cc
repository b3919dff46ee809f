#include "cli/status.h"

#include <algorithm>

#include "cli/installation_view.h"
#include "core/amqp/topology.h"
#include "core/config/job.h"
#include "core/db/query.h"

namespace takt {

namespace {

constexpr std::int64_t kMostCounted = 10'000;  // of each kind and job; below, in the statements, too

struct NameAndText {
  std::string name, text;
  static constexpr auto fields() { return std::tuple(Field("name", &NameAndText::name), Field("text", &NameAndText::text)); }
};
struct Totals {
  std::int64_t dead_letters = 0, outbox_ticks = 0, outbox_dead_letters = 0, runs = 0, late = 0, dead_messages = 0;
  static constexpr auto fields() {
    return std::tuple(Field("dead_letters", &Totals::dead_letters), Field("outbox_ticks", &Totals::outbox_ticks),
                      Field("outbox_dead_letters", &Totals::outbox_dead_letters), Field("runs", &Totals::runs),
                      Field("late", &Totals::late), Field("dead_messages", &Totals::dead_messages));
  }
};
struct After {
  std::int64_t id = 0, most = 0;
  static constexpr auto fields() { return std::tuple(&After::id, &After::most); }
};
struct JobRow : JobStatus {
  std::int64_t id = 0;
  static constexpr auto fields() {
    return std::tuple(
        Field("id", &JobRow::id), Field("name", &JobStatus::name), Field("state", &JobStatus::state), Field("due", &JobStatus::due),
        Field("oldest_due_s", &JobStatus::oldest_due_s), Field("blocked", &JobStatus::blocked),
        Field("dead_letters", &JobStatus::dead_letters), Field("runs", &JobStatus::runs_24h), Field("lost", &JobStatus::runs_lost_24h),
        Field("done", &JobStatus::done_24h), Field("failed", &JobStatus::attempts_failed_24h), Field("last_s", &JobStatus::last_run_s),
        Field("ticks", &JobStatus::ticks), Field("oldest_s", &JobStatus::oldest_tick_s), Field("rate", &JobStatus::done_a_second));
  }
};

constexpr Query<NoRequest, NameAndText> kFaults{"status_faults", R"sql(
  SELECT j.name || '/' || s.name AS name, s.fault AS text FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE s.fault IS NOT NULL AND j.removed_at IS NULL ORDER BY 1 LIMIT 100
)sql"};
constexpr Query<NoRequest, NameAndText> kDefinitions{
    "status_definitions", "SELECT name, definition::text AS text FROM takt.jobs WHERE removed_at IS NULL ORDER BY name"};

/// Schedules and definitions that were set aside: the rest goes on without them. At most 100.
std::vector<Status::Fault> read_faults(Database& database) {
  constexpr std::size_t kMost = 100;
  std::vector<Status::Fault> faults;
  for (const auto& schedule : query(database, kFaults)) faults.push_back({"schedule " + schedule.name, schedule.text});
  for (const auto& job : query(database, kDefinitions)) {
    if (faults.size() >= kMost) break;
    try {
      job_from_json(job.name, nlohmann::json::parse(job.text));
    } catch (const std::exception& error) {
      faults.push_back({"job " + job.name, std::string("its definition is another version's: ") + error.what()});
    }
  }
  return faults;
}

constexpr std::int64_t kJobsAtOnce = 200;
constexpr std::size_t kMostServices = 6;  // that are named

// A slot is stored up to half a second ahead of its time, and sent a moment after: what is younger is no backlog.
constexpr Query<NoRequest, Totals> kTotals{"status_totals", R"sql(
  SELECT (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE state = 'archived' LIMIT 10000) x) AS dead_letters,
         (SELECT count(*) FROM (SELECT 1 FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL
                                   AND publish_at < now() - interval '2 s' LIMIT 10000) x) AS outbox_ticks,
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letter_outbox LIMIT 10000) x) AS outbox_dead_letters,
         (SELECT count(*) FROM takt.ticks WHERE lease_until > now()) AS runs,
         (SELECT count(*) FROM takt.schedules WHERE next_fire < now() - interval '5 s' AND NOT paused AND NOT job_paused) AS late,
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE job = '' AND state = 'archived' LIMIT 10000) x) AS dead_messages
)sql"};

// Suspects (state 6) are due like any other.
constexpr Query<After, JobRow> kJobs{"status_jobs", R"sql(
  SELECT j.id, j.name, takt.job_state(j) AS state,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x) AS due,
         (SELECT coalesce(extract(epoch FROM now() - min(greatest(x.run_at, 'epoch'))), 0)::float8 FROM (
            (SELECT i.run_at FROM takt.items i
              WHERE i.job_id = j.id AND i.state = 0 AND i.run_at <= now() ORDER BY i.priority, i.run_at LIMIT 10000)
            UNION ALL (SELECT i.run_at FROM takt.items i WHERE i.job_id = j.id AND i.state = 6 AND i.run_at <= now() LIMIT 10000)) x)
           AS oldest_due_s,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x) AS blocked,
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters d WHERE d.job = j.name AND d.state = 'archived' LIMIT 10000) x) AS dead_letters,
         r.runs, r.lost, r.done, r.failed, r.last_s, u.ticks, u.oldest_s, r.rate
    FROM takt.jobs j
    LEFT JOIN LATERAL takt.ticks_not_begun(j.id) u ON true
    LEFT JOIN LATERAL (SELECT count(*) AS runs, count(*) FILTER (WHERE status = 'failed') AS lost, coalesce(sum(done + noop), 0) AS done,
                              coalesce(sum(error + dead), 0) AS failed,
                              extract(epoch FROM now() - max(started_at) FILTER (WHERE scanned > 0))::float8 AS last_s,
                              coalesce(sum(done + noop) FILTER (WHERE finished_at > now() - interval '10 s'), 0)::float8 / 10 AS rate
                         FROM (SELECT status, started_at, finished_at, scanned, done, noop, error, dead FROM takt.runs
                                WHERE job_id = j.id AND started_at > now() - interval '24 hours'
                                ORDER BY started_at DESC LIMIT 10000) newest
                        WHERE status <> 'running') r ON true
   WHERE j.removed_at IS NULL AND j.id > $1 ORDER BY j.id LIMIT $2
)sql"};

/// By name. One statement counts at most 10,000 rows of each kind for kJobsAtOnce jobs, so that more jobs never bring it to its
/// timeout.
std::vector<JobStatus> read_jobs(Database& database) {
  std::vector<JobStatus> jobs;
  std::int64_t last = 0;
  for (bool more = true; more;) {
    const auto rows = query(database, kJobs, {last, kJobsAtOnce});
    for (const auto& row : rows) {
      last = row.id;
      jobs.push_back(row);
    }
    more = rows.size() == static_cast<std::size_t>(kJobsAtOnce);
  }
  std::sort(jobs.begin(), jobs.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return jobs;
}

/// A number that stopped at the most that is counted, or is the sum of so many runs, says so.
nlohmann::json counted(std::int64_t number, std::int64_t rows) {
  if (rows < kMostCounted) return number;
  return std::to_string(number) + "+";
}
nlohmann::json counted(std::int64_t number) { return counted(number, number); }

std::string a_second(double rate) {
  if (rate == 0) return "-";
  auto text = std::to_string(rate);
  return text.substr(0, text.find('.') + 2) + "/s";
}

/// A line a living service: what it does, its name, and the runs it has under way.
std::string named(const Installation& installation) {
  std::string text;
  std::size_t lines = 0, more = 0;
  for (const auto& service : installation.services) {
    if (service.silent()) continue;
    if (lines == kMostServices) {
      ++more;
      continue;
    }
    ++lines;
    text += "  " + service.identity.kind + " " + service.identity.name();
    if (service.leading) text += ", leads";
    if (service.places > 0) text += ", " + std::to_string(service.runs) + " of " + std::to_string(service.places) + " runs";
    text += service.ready ? "\n" : ", not ready\n";
  }
  if (more > 0) text += "  and " + std::to_string(more) + " more; \"takt services\" lists them\n";
  return text;
}

}  // namespace

Status read_status(Database& database) {
  Status status;
  status.installation = read_installation(database);
  status.troubles = troubles_of(status.installation);
  const auto totals = query(database, kTotals).at(0);
  status.dead_letters_open = totals.dead_letters;
  status.outbox_ticks = totals.outbox_ticks;
  status.outbox_dead_letters = totals.outbox_dead_letters;
  status.runs_active = totals.runs;
  status.schedules_late = totals.late;
  status.dead_messages = totals.dead_messages;
  status.jobs = read_jobs(database);
  status.removed = removed_with_items(database);
  status.faults = read_faults(database);
  return status;
}

nlohmann::json status_as_json(const Status& status) {
  nlohmann::json json{
      {"dispatcher", {{"leading", status.installation.led}, {"leader", status.installation.leader}, {"term", status.installation.term}}},
      {"dead_letters_open", status.dead_letters_open},
      {"outbox_ticks", status.outbox_ticks},
      {"outbox_dead_letters", status.outbox_dead_letters},
      {"runs_active", status.runs_active},
      {"schedules_late", status.schedules_late},
      {"dead_messages", status.dead_messages},
      {"services", services_as_json(status.installation)},
      {"troubles", troubles_as_json(status.troubles)},
      {"waiting_in", status.installation.waiting},
      {"faults", nlohmann::json::array()},
      {"jobs", nlohmann::json::array()},
      {"removed_jobs", nlohmann::json::array()}};
  for (const auto& job : status.removed)
    json["removed_jobs"].push_back({{"job", job.job}, {"waiting", job.waiting}, {"running", job.running}});
  for (const auto& job : status.jobs) {
    json["jobs"].push_back({{"job", job.name},
                            {"state", job.state},
                            {"due", job.due},
                            {"oldest_due_s", job.oldest_due_s},
                            {"blocked", job.blocked},
                            {"ticks_not_begun", job.ticks},
                            {"oldest_tick_s", job.oldest_tick_s},
                            {"dead_letters", job.dead_letters},
                            {"done_a_second", job.done_a_second},
                            {"runs_24h", job.runs_24h},
                            {"runs_lost_24h", job.runs_lost_24h},
                            {"items_done_24h", job.done_24h},
                            {"attempts_failed_24h", job.attempts_failed_24h}});
  }
  for (const auto& fault : status.faults) json["faults"].push_back({{"what", fault.what}, {"detail", fault.why}});
  return json;
}

std::string status_head(const Status& status, bool with_names) {
  const auto& installation = status.installation;
  std::string text;
  if (installation.led) text += "dispatcher: " + installation.leader + " leads, term " + std::to_string(installation.term) + "\n";
  text += "services: " + living_by_role(installation) + "\n" + (with_names ? named(installation) : "");
  for (const auto& one : status.troubles) text += one.text + "\n";
  for (const auto& queue : {amqp::kDeadQueue, amqp::kQuarantineQueue}) {
    if (const auto waiting = installation.waiting_in(queue).value_or(0); waiting > 0)
      text += "waiting in " + queue + ": " + std::to_string(waiting) +
              (queue == amqp::kDeadQueue ? "" : "; \"takt quarantine\" shows what was refused and why, and discards it") + "\n";
  }
  text += "runs active: " + std::to_string(status.runs_active) + "   dead letters open: " + std::to_string(status.dead_letters_open) +
          "   unpublished: " + std::to_string(status.outbox_ticks) + " ticks, " + std::to_string(status.outbox_dead_letters) +
          " dead letters   schedules late: " + std::to_string(status.schedules_late) + "\n";
  for (const auto& fault : status.faults) text += "SET ASIDE: " + fault.what + ": " + fault.why + "\n";
  return text;
}

Table status_table(const std::vector<JobStatus>& jobs) {
  Table table({"job",
               "state",
               "due",
               {"oldest", 1},
               {"rate", 2},
               {"ticks", 4},
               {"oldest tick", 5},
               {"blocked", 1},
               {"dead", 1},
               {"runs 24h", 6},
               {"lost 24h", 3},
               {"done 24h", 5},
               {"failed attempts 24h", 4},
               {"last run", 3}});
  for (const auto& job : jobs) {
    table.add({job.name, job.state, counted(job.due), job.due > 0 ? nlohmann::json(short_age(job.oldest_due_s)) : nlohmann::json(nullptr),
               a_second(job.done_a_second), counted(job.ticks),
               job.ticks > 0 ? nlohmann::json(short_age(job.oldest_tick_s)) : nlohmann::json(nullptr), counted(job.blocked),
               counted(job.dead_letters), counted(job.runs_24h), counted(job.runs_lost_24h, job.runs_24h),
               counted(job.done_24h, job.runs_24h), counted(job.attempts_failed_24h, job.runs_24h),
               job.last_run_s ? nlohmann::json(short_age(*job.last_run_s) + " ago") : nlohmann::json(nullptr)});
  }
  return table;
}

std::string status_foot(const Status& status) {
  std::string text;
  if (status.dead_messages > 0) {
    text += "dead letters of no job: " + std::to_string(status.dead_messages) + (status.dead_messages < kMostCounted ? "" : "+") +
            ", messages that could not be read; see \"takt dlq list --kind message\"\n";
  }
  for (const auto& job : status.removed) {
    text += "removed, but not done: " + job.job + ", " + job.text() +
            "; apply a job of that name to have them run, or end them with \"takt items cancel --job " + job.job + "\"\n";
  }
  return text;
}

}  // namespace takt
