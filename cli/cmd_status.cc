#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <thread>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/config/job.h"
#include "core/config/removal.h"

namespace takt {

namespace {

constexpr std::int64_t kMostCounted = 10'000;  // of each kind and job; below, in the statements, too

struct Fault {
  std::string what, why;
};

/// Schedules and definitions that were set aside: the rest goes on without them. At most 100.
std::vector<Fault> read_faults(Database& database) {
  constexpr std::size_t kMost = 100;
  std::vector<Fault> faults;
  const auto schedules =
      database.exec(std::string("SELECT j.name || '/' || s.name, s.fault FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id"
                                " WHERE s.fault IS NOT NULL AND j.removed_at IS NULL ORDER BY 1 LIMIT 100"));
  for (std::size_t i = 0; i < schedules.size(); ++i) {
    faults.push_back({"schedule " + std::string(schedules.text(i, 0)), std::string(schedules.text(i, 1))});
  }
  const auto jobs = database.exec(std::string("SELECT name, definition::text FROM takt.jobs WHERE removed_at IS NULL ORDER BY name"));
  for (std::size_t i = 0; i < jobs.size() && faults.size() < kMost; ++i) {
    const std::string name(jobs.text(i, 0));
    try {
      job_from_json(name, nlohmann::json::parse(jobs.text(i, 1)));
    } catch (const std::exception& error) {
      faults.push_back({"job " + name, std::string("its definition is another version's: ") + error.what()});
    }
  }
  return faults;
}

constexpr std::size_t kJobsAtOnce = 200;

struct JobStatus {
  std::string name, state;
  std::int64_t due;
  double oldest_due;
  std::int64_t blocked, dead_letters, runs, failed, done, error;
  std::optional<double> last_run;
};

// Suspects (state 6) are due like any other.
constexpr Statement kJobs{"status_jobs", R"sql(
  SELECT j.id, j.name, CASE WHEN j.paused THEN 'paused' WHEN j.held_until > now() THEN 'held' ELSE 'active' END,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 6) AND i.run_at <= now() LIMIT 10000) x),
         (SELECT coalesce(extract(epoch FROM now() - min(greatest(x.run_at, 'epoch'))), 0) FROM (
            (SELECT i.run_at FROM takt.items i
              WHERE i.job_id = j.id AND i.state = 0 AND i.run_at <= now() ORDER BY i.priority, i.run_at LIMIT 10000)
            UNION ALL (SELECT i.run_at FROM takt.items i WHERE i.job_id = j.id AND i.state = 6 AND i.run_at <= now() LIMIT 10000)) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.job_id = j.id AND i.state = 5 LIMIT 10000) x),
         (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters d WHERE d.job = j.name AND d.state = 'archived' LIMIT 10000) x),
         r.runs, r.failed, r.done, r.error, r.last
    FROM takt.jobs j
    LEFT JOIN LATERAL (SELECT count(*) AS runs, count(*) FILTER (WHERE status = 'failed') AS failed, coalesce(sum(done + noop), 0) AS done,
                              coalesce(sum(error + dead), 0) AS error, extract(epoch FROM now() - max(started_at)) AS last
                         FROM (SELECT status, started_at, done, noop, error, dead FROM takt.runs
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
    const auto rows = database.exec(kJobs, Params::of(last, static_cast<std::int64_t>(kJobsAtOnce)));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      last = rows.integer(i, 0);
      jobs.push_back({std::string(rows.text(i, 1)), std::string(rows.text(i, 2)), rows.integer(i, 3), rows.real(i, 4), rows.integer(i, 5),
                      rows.integer(i, 6), rows.integer(i, 7), rows.integer(i, 8), rows.integer(i, 9), rows.integer(i, 10),
                      rows.is_null(i, 11) ? std::nullopt : std::optional(rows.real(i, 11))});
    }
    more = rows.size() == kJobsAtOnce;
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

void print_status(Database& database, bool json) {
  const auto leader = database.exec(std::string("SELECT until > now(), term FROM takt.leader WHERE name = 'dispatcher'"));
  const auto totals = database.exec(std::string(R"sql(
    SELECT (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE state = 'archived' LIMIT 10000) x),
           (SELECT count(*) FROM (SELECT 1 FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL LIMIT 10000) x),
           (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letter_outbox LIMIT 10000) x),
           (SELECT count(*) FROM takt.ticks WHERE lease_until > now()),
           (SELECT count(*) FROM takt.schedules WHERE next_fire < now() - interval '60 s' AND NOT paused AND NOT job_paused),
           (SELECT count(*) FROM (SELECT 1 FROM takt.dead_letters WHERE job = '' AND state = 'archived' LIMIT 10000) x)
  )sql"));
  const auto jobs = read_jobs(database);
  const auto removed = removed_with_items(database);
  const auto faults = read_faults(database);
  if (json) {
    nlohmann::json status{{"dispatcher", {{"leading", leader.boolean(0, 0)}, {"term", leader.integer(0, 1)}}},
                          {"dead_letters_open", totals.integer(0, 0)},
                          {"outbox_ticks", totals.integer(0, 1)},
                          {"outbox_dead_letters", totals.integer(0, 2)},
                          {"runs_active", totals.integer(0, 3)},
                          {"schedules_late", totals.integer(0, 4)},
                          {"dead_messages", totals.integer(0, 5)},
                          {"faults", nlohmann::json::array()},
                          {"jobs", nlohmann::json::array()},
                          {"removed_jobs", nlohmann::json::array()}};
    for (const auto& job : removed)
      status["removed_jobs"].push_back({{"job", job.job}, {"waiting", job.waiting}, {"running", job.running}});
    for (const auto& job : jobs) {
      status["jobs"].push_back({{"job", job.name},
                                {"state", job.state},
                                {"due", job.due},
                                {"oldest_due_s", job.oldest_due},
                                {"blocked", job.blocked},
                                {"dead_letters", job.dead_letters},
                                {"runs_24h", job.runs},
                                {"runs_failed_24h", job.failed},
                                {"items_done_24h", job.done},
                                {"items_failed_24h", job.error}});
    }
    for (const auto& fault : faults) status["faults"].push_back({{"what", fault.what}, {"why", fault.why}});
    std::cout << status.dump(2) << "\n";
    return;
  }
  std::cout << "dispatcher: "
            << (leader.boolean(0, 0) ? "leading, term " + std::to_string(leader.integer(0, 1)) : "NONE LEADS; schedules do not tick")
            << "\n"
            << "runs active: " << totals.integer(0, 3) << "   dead letters open: " << totals.integer(0, 0)
            << "   unpublished: " << totals.integer(0, 1) << " ticks, " << totals.integer(0, 2) << " dead letters"
            << "   schedules late: " << totals.integer(0, 4) << "\n";
  for (const auto& fault : faults) std::cout << "SET ASIDE: " << fault.what << ": " << fault.why << "\n";
  std::cout << "\n";
  Table table({"job", "state", "due", "oldest", "blocked", "dead", "runs 24h", "lost", "done 24h", "failed 24h", "last run"});
  for (const auto& job : jobs) {
    table.add({job.name, job.state, counted(job.due), short_age(job.oldest_due), counted(job.blocked), counted(job.dead_letters),
               counted(job.runs), counted(job.failed, job.runs), counted(job.done, job.runs), counted(job.error, job.runs),
               job.last_run ? nlohmann::json(short_age(*job.last_run) + " ago") : nlohmann::json(nullptr)});
  }
  table.print(false, "no jobs; define some in takt.yaml and run \"takt apply\"");
  if (const auto dead = totals.integer(0, 5); dead > 0) {
    std::cout << "dead letters of no job: " << dead << (dead < kMostCounted ? "" : "+")
              << ", messages that could not be read; see \"takt dlq list --kind message\"\n";
  }
  for (const auto& job : removed) {
    std::cout << "removed, but not done: " << job.job << ", " << job.text()
              << "; apply a job of that name to have them run, or end them with \"takt items cancel --job " << job.job << "\"\n";
  }
}

}  // namespace

void add_status(CLI::App& app, Context& context) {
  auto* status = app.add_subcommand("status", "what is going on: leader, backlog, failures, dead letters");
  auto json = std::make_shared<bool>(false);
  status->add_flag("--json", *json, "as JSON");
  status->callback([&context, json] { print_status(context.current_database(), *json); });

  auto* top = app.add_subcommand("top", "status, again and again, until Ctrl-C");
  auto interval = std::make_shared<int>(2);
  top->add_option("--interval", *interval, "seconds between")->check(CLI::Range(1, 3600))->capture_default_str();
  top->callback([&context, interval] {
    auto& database = context.current_database();
    while (true) {
      if (::isatty(STDOUT_FILENO) != 0) std::cout << "\x1b[H\x1b[2J";
      print_status(database, false);
      std::cout << std::flush;
      std::this_thread::sleep_for(std::chrono::seconds(*interval));
    }
  });
}

}  // namespace takt
