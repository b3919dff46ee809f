#include "core/installation/installation.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::int64_t kMostNamed = 3;

struct Silent {
  Duration after{};
  static constexpr auto fields() { return std::tuple(&Silent::after); }
};
/// Lists are joined by commas.
struct ServiceRecord {
  std::string id, kind, roles, host, keys, version, queues, detail, waiting, failing;
  int pid = 0, runs = 0, places = 0;
  bool ready = false;
  double age_s = 0, unseen_s = 0;
  static constexpr auto fields() {
    return std::tuple(Field("id", &ServiceRecord::id), Field("kind", &ServiceRecord::kind), Field("roles", &ServiceRecord::roles),
                      Field("host", &ServiceRecord::host), Field("pid", &ServiceRecord::pid), Field("keys", &ServiceRecord::keys),
                      Field("version", &ServiceRecord::version), Field("queues", &ServiceRecord::queues),
                      Field("ready", &ServiceRecord::ready), Field("detail", &ServiceRecord::detail), Field("runs", &ServiceRecord::runs),
                      Field("places", &ServiceRecord::places), Field("age_s", &ServiceRecord::age_s),
                      Field("unseen_s", &ServiceRecord::unseen_s), Field("waiting", &ServiceRecord::waiting),
                      Field("failing", &ServiceRecord::failing));
  }
};
struct Most {
  std::int64_t most = 0;
  static constexpr auto fields() { return std::tuple(&Most::most); }
};
struct QueueRecord {
  std::string queue, jobs;
  std::int64_t count = 0;
  static constexpr auto fields() {
    return std::tuple(Field("queue", &QueueRecord::queue), Field("count", &QueueRecord::count), Field("jobs", &QueueRecord::jobs));
  }
};
struct HeldRecord {
  std::string job, error;
  Timestamp until{}, since{};
  std::int64_t failures = 0, total = 0;
  bool due = false;
  static constexpr auto fields() {
    return std::tuple(Field("job", &HeldRecord::job), Field("error", &HeldRecord::error), Field("until_us", &HeldRecord::until),
                      Field("since_us", &HeldRecord::since), Field("failures", &HeldRecord::failures), Field("due", &HeldRecord::due),
                      Field("total", &HeldRecord::total));
  }
};
struct BlockedRecord {
  std::string job, error;
  std::int64_t items = 0, total = 0;
  static constexpr auto fields() {
    return std::tuple(Field("name", &BlockedRecord::job), Field("error", &BlockedRecord::error), Field("items", &BlockedRecord::items),
                      Field("total", &BlockedRecord::total));
  }
};
struct PausedRecord {
  std::string job;
  std::optional<std::string> who;
  std::optional<Timestamp> at;
  std::int64_t total = 0;
  static constexpr auto fields() {
    return std::tuple(Field("name", &PausedRecord::job), Field("who", &PausedRecord::who), Field("at_us", &PausedRecord::at),
                      Field("total", &PausedRecord::total));
  }
};
struct LeaderRecord {
  std::string holder;
  std::int64_t term = 0;
  bool led = false;
  static constexpr auto fields() {
    return std::tuple(Field("holder", &LeaderRecord::holder), Field("term", &LeaderRecord::term), Field("led", &LeaderRecord::led));
  }
};
struct FewFailures {
  std::vector<std::string> jobs, seconds;
  static constexpr auto fields() { return std::tuple(&FewFailures::jobs, &FewFailures::seconds); }
};
struct JobName {
  std::string job;
  static constexpr auto fields() { return std::tuple(Field("job", &JobName::job)); }
};
struct Forgotten {
  std::string id;
  Duration silent_after{};
  std::string who;
  static constexpr auto fields() { return std::tuple(&Forgotten::id, &Forgotten::silent_after, &Forgotten::who); }
};
struct ServiceName {
  std::string name;
  static constexpr auto fields() { return std::tuple(Field("name", &ServiceName::name)); }
};

// Words are names and fingerprints: none has the character they are joined with.
constexpr Query<Silent, ServiceRecord> kServices{"installation_services", R"sql(
  SELECT id, kind, array_to_string(roles, ',') AS roles, host, pid, array_to_string(keys, ',') AS keys, version,
         array_to_string(queues, ',') AS queues, ready, detail, runs, places, extract(epoch FROM now() - started_at)::float8 AS age_s,
         extract(epoch FROM now() - seen_at)::float8 AS unseen_s, waiting::text AS waiting, failing::text AS failing
    FROM takt.services ORDER BY seen_at < now() - $1 * interval '1 ms', kind, started_at, id LIMIT 1000
)sql"};
constexpr Query<Most, QueueRecord> kQueues{"installation_queues", R"sql(
  SELECT j.queue, count(*) AS count, array_to_string((array_agg(j.name ORDER BY j.name))[:$1], ',') AS jobs
    FROM takt.jobs j WHERE j.removed_at IS NULL GROUP BY j.queue ORDER BY j.queue
)sql"};
// One row a destination that fails, by its primary key; takt.jobs once.
constexpr Query<NoRequest, HeldRecord> kHeldJobs{"installation_held", R"sql(
  SELECT job, error, (extract(epoch FROM until) * 1000000)::bigint AS until_us, (extract(epoch FROM since) * 1000000)::bigint AS since_us,
         failures, until <= now() AS due, count(*) OVER () AS total
    FROM takt.held_jobs ORDER BY job LIMIT 20
)sql"};
// A step a job through items_due, and one probe of failed_attempts_item a job.
constexpr Query<Most, BlockedRecord> kBlockedJobs{"installation_blocked", R"sql(
  WITH RECURSIVE jobs AS (
    (SELECT i.job_id FROM takt.items i WHERE i.state = 5 ORDER BY i.job_id LIMIT 1)
    UNION ALL
    SELECT n.job_id FROM jobs b CROSS JOIN LATERAL (
      SELECT i.job_id FROM takt.items i WHERE i.state = 5 AND i.job_id > b.job_id ORDER BY i.job_id LIMIT 1) n)
  SELECT j.name, (SELECT a.error FROM takt.failed_attempts a
                   WHERE a.item_id = (SELECT i.id FROM takt.items i WHERE i.state = 5 AND i.job_id = j.id ORDER BY i.priority, i.run_at LIMIT 1)
                   ORDER BY a.at DESC LIMIT 1) AS error,
         (SELECT count(*) FROM (SELECT 1 FROM takt.items i WHERE i.state = 5 AND i.job_id = j.id LIMIT $1) x) AS items, j.total
    FROM (SELECT j.id, j.name, count(*) OVER () AS total FROM jobs b JOIN takt.jobs j ON j.id = b.job_id WHERE j.removed_at IS NULL
           ORDER BY j.name LIMIT 20) j ORDER BY j.name
)sql"};
// By audit_subject.
constexpr Query<NoRequest, PausedRecord> kPausedJobs{"installation_paused", R"sql(
  SELECT j.name, a.who, (extract(epoch FROM a.at) * 1000000)::bigint AS at_us, j.total
    FROM (SELECT name, count(*) OVER () AS total FROM takt.jobs WHERE paused AND removed_at IS NULL ORDER BY name LIMIT 20) j
    LEFT JOIN LATERAL (SELECT who, at FROM takt.audit WHERE subject = 'job ' || j.name AND action = 'pause'
                                         ORDER BY id DESC LIMIT 1) a ON true ORDER BY j.name
)sql"};
constexpr Query<NoRequest, LeaderRecord> kLeader{"installation_leader",
                                                 "SELECT holder, term, until > now() AS led FROM takt.leader WHERE name = 'dispatcher'"};

// By runs_job, from a minute before the first failure: most runs take less. Asked only where a worker tells of a few failures.
constexpr Query<FewFailures, JobName> kSucceeded{"installation_succeeded", R"sql(
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
  FewFailures few;
  for (const auto& service : services) {
    for (const auto& one : service.failing) {
      if (!one.few_since_s) continue;
      few.jobs.push_back(one.job);
      few.seconds.push_back(std::to_string(*one.few_since_s));
    }
  }
  if (few.jobs.empty()) return;
  std::set<std::string, std::less<>> refuted;
  for (const auto& row : query(database, kSucceeded, few)) refuted.insert(row.job);
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
  for (const auto& leader : query(database, kLeader)) {
    installation.leader = leader.holder;
    installation.term = leader.term;
    installation.led = leader.led;
  }
  for (const auto& row : query(database, kServices, {kSilentAfter})) {
    ServiceRow service;
    service.identity = {row.id, row.kind, words(row.roles), row.host, row.pid, row.version, words(row.keys)};
    service.queues = words(row.queues);
    service.leading = installation.led && service.identity.name() == installation.leader;
    service.ready = row.ready;
    service.detail = row.detail;
    service.runs = row.runs;
    service.places = row.places;
    service.age_s = row.age_s;
    service.unseen_s = row.unseen_s;
    if (service.leading && !service.silent()) installation.waiting = nlohmann::json::parse(row.waiting);
    for (const auto& one : nlohmann::json::parse(row.failing)) {
      service.failing.push_back({one.at("job"), one.value("attempts", std::int64_t(0)), one.at("error"), std::nullopt});
      if (one.contains("few_since_s")) service.failing.back().few_since_s = one.at("few_since_s").get<double>() + service.unseen_s;
    }
    installation.services.push_back(std::move(service));
  }
  forget_refuted(database, installation.services);
  for (const auto& row : query(database, kQueues, {kMostNamed})) {
    if (row.queue != amqp::kBenchQueue) installation.queues.push_back({row.queue, words(row.jobs), row.count});
  }
  for (const auto& row : query(database, kHeldJobs)) {
    installation.held.push_back({row.job, row.error, row.until, row.since, row.due, row.failures});
    installation.held_count = row.total;
  }
  for (const auto& row : query(database, kBlockedJobs, {Installation::kMostCounted})) {
    installation.blocked.push_back({row.job, row.error, row.items});
    installation.blocked_count = row.total;
  }
  for (const auto& row : query(database, kPausedJobs)) {
    installation.paused.push_back({row.job, row.who.value_or(""), row.who ? row.at : std::nullopt});
    installation.paused_count = row.total;
  }
  return installation;
}

std::string forget_service(Database& database, const std::string& id, const std::string& who) {
  constexpr Query<Forgotten, ServiceName> kForget{"forget_service", R"sql(
    WITH gone AS (
      DELETE FROM takt.services WHERE id = $1 AND seen_at < now() - $2 * interval '1 ms' RETURNING id || '@' || host AS name),
    noted AS (
      INSERT INTO takt.audit (who, origin, action, subject) SELECT $3, 'command line', 'forget', 'service ' || name FROM gone)
    SELECT name FROM gone
  )sql"};
  const auto rows = query_retrying(database, kForget, {id, kSilentAfter, who});
  return rows.empty() ? "" : rows.front().name;
}

int forget_gone(Database& database) {
  constexpr Query<Silent, NoRow> kServicesGone{"forget_services", "DELETE FROM takt.services WHERE seen_at < now() - $1 * interval '1 ms'"};
  constexpr Query<NoRequest, NoRow> kDestinationsGone{"forget_destinations",
                                                      "DELETE FROM takt.failing_destinations WHERE last_at < now() - interval '1 day'"};
  return static_cast<int>(execute(database, kServicesGone, {kForgetSilent}) + execute(database, kDestinationsGone));
}

}  // namespace takt
