#include "core/installation/installation.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/amqp/topology.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMostNamed = 3;

// Words are names and fingerprints: none holds the character they are joined with.
constexpr Statement kServices{"installation_services", R"sql(
  SELECT id, kind, array_to_string(roles, ','), host, pid, array_to_string(keys, ','), version, array_to_string(queues, ','),
         ready, detail, runs, places, extract(epoch FROM now() - started_at), extract(epoch FROM now() - seen_at), waiting::text, failing::text
    FROM takt.services ORDER BY seen_at < now() - $1 * interval '1 ms', kind, started_at, id LIMIT 1000
)sql"};
constexpr Statement kQueues{"installation_queues", R"sql(
  SELECT j.queue, count(*), array_to_string((array_agg(j.name ORDER BY j.name))[:$1], ',')
    FROM takt.jobs j WHERE j.removed_at IS NULL GROUP BY j.queue ORDER BY j.queue
)sql"};
// One row a destination that fails, by its primary key; takt.jobs once.
constexpr Statement kHeldJobs{"installation_held", R"sql(
  SELECT job, error, (extract(epoch FROM until) * 1000000)::bigint, (extract(epoch FROM since) * 1000000)::bigint, failures,
         until <= now(), count(*) OVER ()
    FROM takt.held_jobs ORDER BY job LIMIT 20
)sql"};
// A step a job through items_due, and one probe of failed_attempts_item a job.
constexpr Statement kBlockedJobs{"installation_blocked", R"sql(
  WITH RECURSIVE jobs AS (
    (SELECT i.job_id FROM takt.items i WHERE i.state = 5 ORDER BY i.job_id LIMIT 1)
    UNION ALL
    SELECT n.job_id FROM jobs b CROSS JOIN LATERAL (
      SELECT i.job_id FROM takt.items i WHERE i.state = 5 AND i.job_id > b.job_id ORDER BY i.job_id LIMIT 1) n)
  SELECT j.name, (SELECT a.error FROM takt.failed_attempts a
                   WHERE a.item_id = (SELECT i.id FROM takt.items i WHERE i.state = 5 AND i.job_id = j.id ORDER BY i.priority, i.run_at LIMIT 1)
                   ORDER BY a.at DESC LIMIT 1),
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.state = 5 AND i.job_id = j.id LIMIT $1) x), j.total
    FROM (SELECT j.id, j.name, count(*) OVER () AS total FROM jobs b JOIN takt.jobs j ON j.id = b.job_id WHERE j.removed_at IS NULL
           ORDER BY j.name LIMIT 20) j ORDER BY j.name
)sql"};
// By audit_subject.
constexpr Statement kPausedJobs{"installation_paused", R"sql(
  SELECT j.name, a.who, (extract(epoch FROM a.at) * 1000000)::bigint, j.total
    FROM (SELECT name, count(*) OVER () AS total FROM takt.jobs WHERE paused AND removed_at IS NULL ORDER BY name LIMIT 20) j
    LEFT JOIN LATERAL (SELECT who, at FROM takt.audit WHERE subject = 'job ' || j.name AND action = 'pause'
                                         ORDER BY id DESC LIMIT 1) a ON true ORDER BY j.name
)sql"};
constexpr Statement kLeader{"installation_leader", "SELECT holder, term, until > now() FROM takt.leader WHERE name = 'dispatcher'"};

// By runs_job, from a minute before the first failure: most runs take less. Asked only where a worker tells of a few failures.
constexpr Statement kSucceeded{"installation_succeeded", R"sql(
  SELECT DISTINCT f.job FROM unnest($1::text[], $2::text[]) f(job, seconds) JOIN takt.jobs j ON j.name = f.job
   WHERE EXISTS (SELECT 1 FROM takt.runs r
                  WHERE r.job_id = j.id AND r.started_at > now() - (f.seconds::float8 + 60) * interval '1 s'
                    AND r.finished_at > now() - f.seconds::float8 * interval '1 s' AND r.done + r.noop > 0)
)sql"};

std::vector<std::string> words(std::string_view joined) {
  std::vector<std::string> result;
  for (const auto word : split(joined, ',')) {
    if (!word.empty()) result.emplace_back(word);
  }
  return result;
}

/// A few failures in one worker, and a success of the same job since: it is not the job that fails.
void forget_refuted(Database& database, std::vector<ServiceRow>& services) {
  std::vector<std::string> jobs, seconds;
  for (const auto& service : services) {
    for (const auto& one : service.failing) {
      if (!one.few_since_s) continue;
      jobs.push_back(one.job);
      seconds.push_back(std::to_string(*one.few_since_s));
    }
  }
  if (jobs.empty()) return;
  const auto rows = database.exec(kSucceeded, Params::of(jobs, seconds));
  std::set<std::string, std::less<>> refuted;
  for (std::size_t i = 0; i < rows.size(); ++i) refuted.emplace(rows.text(i, 0));
  for (auto& service : services) {
    std::erase_if(service.failing, [&](const FailingJob& one) { return one.few_since_s && refuted.contains(one.job); });
  }
}

}  // namespace

bool ServiceRow::does(std::string_view role) const {
  return std::find(identity.roles.begin(), identity.roles.end(), role) != identity.roles.end();
}

bool ServiceRow::holds(const std::string& fingerprint) const {
  return std::any_of(identity.keys.begin(), identity.keys.end(), [&](const std::string& key) { return key.ends_with(" " + fingerprint); });
}

std::optional<std::int64_t> Installation::waiting_in(const std::string& queue) const {
  const auto found = waiting.find(queue);
  return found == waiting.end() ? std::nullopt : std::optional(found->second);
}

Installation read_installation(Database& database) {
  Installation installation;
  const auto leader = database.exec(kLeader);
  installation.leader = leader.text(0, 0);
  installation.term = leader.integer(0, 1);
  installation.led = leader.boolean(0, 2);
  const auto rows = database.exec(kServices, Params::of(kSilentAfter));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    ServiceRow service;
    service.identity = {std::string(rows.text(i, 0)), std::string(rows.text(i, 1)),         words(rows.text(i, 2)),
                        std::string(rows.text(i, 3)), static_cast<int>(rows.integer(i, 4)), std::string(rows.text(i, 6)),
                        words(rows.text(i, 5))};
    service.queues = words(rows.text(i, 7));
    service.leading = installation.led && service.identity.name() == installation.leader;
    service.ready = rows.boolean(i, 8);
    service.detail = rows.text(i, 9);
    service.runs = static_cast<int>(rows.integer(i, 10));
    service.places = static_cast<int>(rows.integer(i, 11));
    service.age_s = rows.real(i, 12);
    service.unseen_s = rows.real(i, 13);
    if (service.leading && !service.silent()) installation.waiting = nlohmann::json::parse(rows.text(i, 14));
    for (const auto& one : nlohmann::json::parse(rows.text(i, 15))) {
      service.failing.push_back({one.at("job"), one.value("attempts", std::int64_t(0)), one.at("error"), std::nullopt});
      if (one.contains("few_since_s")) service.failing.back().few_since_s = one.at("few_since_s").get<double>() + service.unseen_s;
    }
    installation.services.push_back(std::move(service));
  }
  forget_refuted(database, installation.services);
  const auto queues = database.exec(kQueues, Params::of(static_cast<std::int64_t>(kMostNamed)));
  for (std::size_t i = 0; i < queues.size(); ++i) {
    if (queues.text(i, 0) == amqp::kBenchQueue) continue;
    installation.queues.push_back({std::string(queues.text(i, 0)), words(queues.text(i, 2)), queues.integer(i, 1)});
  }
  const auto held = database.exec(kHeldJobs);
  for (std::size_t i = 0; i < held.size(); ++i) {
    installation.held.push_back({std::string(held.text(i, 0)), std::string(held.text(i, 1)), held.time(i, 2), held.time(i, 3),
                                 held.boolean(i, 5), held.integer(i, 4)});
    installation.held_count = held.integer(i, 6);
  }
  const auto blocked = database.exec(kBlockedJobs, Params::of(Installation::kMostCounted));
  for (std::size_t i = 0; i < blocked.size(); ++i) {
    installation.blocked.push_back(
        {std::string(blocked.text(i, 0)), blocked.is_null(i, 1) ? "" : std::string(blocked.text(i, 1)), blocked.integer(i, 2)});
    installation.blocked_count = blocked.integer(i, 3);
  }
  const auto paused = database.exec(kPausedJobs);
  for (std::size_t i = 0; i < paused.size(); ++i) {
    const bool known = !paused.is_null(i, 1);
    installation.paused.push_back({std::string(paused.text(i, 0)), known ? std::string(paused.text(i, 1)) : "",
                                   known ? std::optional(paused.time(i, 2)) : std::nullopt});
    installation.paused_count = paused.integer(i, 3);
  }
  return installation;
}

std::string forget_service(Database& database, const std::string& id, const std::string& who) {
  constexpr Statement kForget{"forget_service", R"sql(
    WITH gone AS (
      DELETE FROM takt.services WHERE id = $1 AND seen_at < now() - $2 * interval '1 ms' RETURNING id || '@' || host AS name),
    noted AS (
      INSERT INTO takt.audit (who, origin, action, subject) SELECT $3, 'command line', 'forget', 'service ' || name FROM gone)
    SELECT name FROM gone
  )sql"};
  const auto rows = database.exec_retrying(kForget, Params::of(id, kSilentAfter, who));
  return rows.empty() ? "" : std::string(rows.text(0, 0));
}

int forget_gone(Database& database) {
  constexpr Statement kServicesGone{"forget_services", "DELETE FROM takt.services WHERE seen_at < now() - $1 * interval '1 ms'"};
  constexpr Statement kDestinationsGone{"forget_destinations",
                                        "DELETE FROM takt.failing_destinations WHERE last_at < now() - interval '1 day'"};
  return static_cast<int>(database.exec(kServicesGone, Params::of(kForgetSilent)).affected() + database.exec(kDestinationsGone).affected());
}

}  // namespace takt
