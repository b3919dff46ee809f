#include "core/installation/troubles.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/amqp/topology.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMostNamed = 3;

std::string listed(const std::vector<std::string>& names, std::int64_t count) {
  const auto text = join(names, ", ");
  const auto more = count - static_cast<std::int64_t>(names.size());
  return more > 0 ? text + " and " + std::to_string(more) + " more" : text;
}

std::string who(const ServiceRow& service) {
  return service.identity.kind + " " + service.identity.id + " on " + service.identity.host + " (pid " +
         std::to_string(service.identity.pid) + ")";
}

/// The fingerprint of the current key; empty if it shows none.
std::string current_key(const ServiceRow& service) {
  for (const auto& key : service.identity.keys) {
    if (key.starts_with(kCurrentKey)) return key.substr(kCurrentKey.size());
  }
  return "";
}

std::string at(Timestamp time) { return format_rfc3339(std::chrono::floor<std::chrono::seconds>(time)); }

/// What one job's attempts meet in the workers, one line a job.
struct Failing {
  std::int64_t attempts = 0;
  std::string error;  ///< of the worker with the most
  std::vector<std::string> workers;
};

std::map<std::string, Failing> failing_jobs(const Installation& installation) {
  std::map<std::string, Failing> jobs;
  std::map<std::string, std::int64_t> most;
  for (const auto& service : installation.services) {
    if (service.silent()) continue;
    for (const auto& one : service.failing) {
      auto& job = jobs[one.job];
      job.attempts += one.attempts;
      if (job.workers.size() < kMostNamed) job.workers.push_back(service.identity.name());
      if (one.attempts > most[one.job]) {
        most[one.job] = one.attempts;
        job.error = one.error;
      }
    }
  }
  return jobs;
}

/// Silent services that are no trouble any more: one that does the same started on the same host since they were heard last, each in
/// the place of one. For a while they are told all the same: what ends and is started again and again is to be seen.
std::set<const ServiceRow*> replaced(const std::vector<ServiceRow>& services) {
  std::vector<const ServiceRow*> silent;
  for (const auto& service : services) {
    if (service.silent()) silent.push_back(&service);
  }
  std::sort(silent.begin(), silent.end(), [](const auto* a, const auto* b) { return a->unseen_s > b->unseen_s; });
  std::set<const ServiceRow*> found, used;
  for (const auto* gone : silent) {
    const ServiceRow* next = nullptr;  // the first that started after it
    for (const auto& other : services) {
      const bool fits = &other != gone && other.identity.host == gone->identity.host && other.identity.kind == gone->identity.kind &&
                        other.age_s <= gone->unseen_s && !used.contains(&other);
      if (fits && (next == nullptr || other.age_s > next->age_s)) next = &other;
    }
    if (next == nullptr) continue;
    used.insert(next);
    if (gone->unseen_s > std::chrono::duration<double>(kReplacedIsTold).count()) found.insert(gone);
  }
  return found;
}

/// The first few by name; an outage of many is one line more.
void add_each(const char* what, const std::string& word, const std::vector<std::pair<const ServiceRow*, std::string>>& services,
              std::vector<Trouble>& troubles) {
  for (std::size_t i = 0; i < std::min(services.size(), kMostNamed); ++i) {
    const auto& [service, text] = services[i];
    troubles.push_back({what, service->identity.name(), word + who(*service) + text});
  }
  if (services.size() <= kMostNamed) return;
  const auto more = services.size() - kMostNamed;
  troubles.push_back({what, "",
                      word + std::to_string(more) + (more == 1 ? " service" : " services") + " more; \"takt services\" lists them", false,
                      static_cast<int>(more)});
}

/// What is counted of jobs beyond those that are named.
void add_more(const char* what, const std::string& word, std::int64_t all, std::size_t named, bool meant, std::vector<Trouble>& troubles) {
  const auto more = all - static_cast<std::int64_t>(named);
  if (more <= 0) return;
  troubles.push_back({what, "", word + std::to_string(more) + (more == 1 ? " job" : " jobs") + " more; \"takt jobs\" lists them", meant,
                      static_cast<int>(more)});
}

std::string held_until(const Installation::HeldJob& job) {
  return (job.over ? ", its next item tries it: " : " until " + at(job.until) + ", then it is tried again: ") +
         std::to_string(job.failures) + " failures in a row since " + at(job.since) + ": " + job.error + "; \"takt jobs resume " + job.job +
         "\" tries it now";
}

void add_troubles_of_jobs(const Installation& installation, std::vector<Trouble>& troubles) {
  std::set<std::string> told;
  for (const auto& job : installation.held) {
    told.insert(job.job);
    troubles.push_back({"held", job.job, "HELD: job " + job.job + held_until(job)});
  }
  add_more("held", "HELD: ", installation.held_count, installation.held.size(), false, troubles);
  for (const auto& job : installation.blocked) {
    told.insert(job.job);
    const bool all = job.items < Installation::kMostCounted;
    troubles.push_back({"blocked", job.job,
                        "BLOCKED: job " + job.job + ": " + std::to_string(job.items) + (all ? "" : "+") +
                            (job.items == 1 ? " item waits" : " items wait") + " for you: " + job.error +
                            "; once it is mended, \"takt items retry --job " + job.job + "\""});
  }
  add_more("blocked", "BLOCKED: ", installation.blocked_count, installation.blocked.size(), false, troubles);
  for (const auto& [name, job] : failing_jobs(installation)) {
    if (told.contains(name)) continue;
    troubles.push_back({"failing", name,
                        "FAILING: job " + name + ": the last " +
                            (job.attempts == 1 ? "attempt" : std::to_string(job.attempts) + " attempts") + " failed at " +
                            (job.workers.size() == 1 ? "worker " : "workers ") + join(job.workers, ", ") + ": " + job.error});
  }
  for (const auto& job : installation.paused) {
    troubles.push_back({"paused", job.job,
                        "PAUSED: job " + job.job + (job.since ? " by " + job.who + " since " + at(*job.since) : "") +
                            "; \"takt jobs resume " + job.job + "\"",
                        true});
  }
  add_more("paused", "PAUSED: ", installation.paused_count, installation.paused.size(), true, troubles);
}

}  // namespace

std::vector<Trouble> troubles_of(const Installation& installation) {
  std::vector<Trouble> troubles;
  const auto& services = installation.services;
  const auto living = [&](auto&& fits) {
    return std::any_of(services.begin(), services.end(), [&](const ServiceRow& service) { return !service.silent() && fits(service); });
  };
  if (!installation.led) {
    troubles.push_back({"no_leader", "",
                        std::string("NONE LEADS: no dispatcher holds the lease; schedules do not tick and nothing is woken") +
                            (living([](const auto& s) { return s.does("dispatcher"); }) ? "" : "; no dispatcher lives")});
  }
  for (const auto& queue : installation.queues) {
    const bool taken = living([&](const auto& service) {
      return service.does("worker") && std::find(service.queues.begin(), service.queues.end(), queue.name) != service.queues.end();
    });
    if (!taken) {
      troubles.push_back(
          {"no_worker", queue.name,
           "NO WORKER takes the ticks of queue " + queue.name + ": nothing is done for " + listed(queue.jobs, queue.job_count)});
    }
  }
  if (!living([](const auto& service) { return service.does("archive"); })) {
    const auto dead = installation.waiting_in(amqp::kDeadQueue);
    troubles.push_back(
        {"no_archive", "",
         "NO ARCHIVE reads dead letters: " + (dead ? std::to_string(*dead) + (*dead == 1 ? " waits" : " wait") : std::string("they wait")) +
             " in " + amqp::kDeadQueue + ", and \"takt dlq\" does not show them"});
  }
  const auto leader =
      std::find_if(services.begin(), services.end(), [](const auto& service) { return service.leading && !service.silent(); });
  const auto signs_with = leader == services.end() ? "" : current_key(*leader);
  std::vector<std::pair<const ServiceRow*, std::string>> silent, wrong_key, not_ready;
  const auto gone_for_good = replaced(services);
  for (const auto& service : services) {
    if (service.silent()) {
      if (!gone_for_good.contains(&service))
        silent.emplace_back(&service, ", last seen " + std::to_string(std::llround(service.unseen_s)) +
                                          " s ago; if it is not to come back: \"takt services forget " + service.identity.id + "\"");
      continue;
    }
    if (!signs_with.empty() && !service.holds(signs_with)) {
      wrong_key.emplace_back(&service,
                             " lacks the key " + signs_with + " that ticks are signed with; it holds " + join(service.identity.keys, ", "));
    }
    if (!service.ready && !service.starting()) not_ready.emplace_back(&service, ": " + service.detail);
  }
  add_each("silent", "WENT SILENT: ", silent, troubles);
  add_each("key", "WRONG KEY: ", wrong_key, troubles);
  add_each("not_ready", "NOT READY: ", not_ready, troubles);
  add_troubles_of_jobs(installation, troubles);
  return troubles;
}

InstallationGauges installation_gauges(const Installation& installation, const std::vector<Trouble>& troubles) {
  InstallationGauges gauges;
  for (const auto* role : {"dispatcher", "worker", "archive"}) gauges.services[role] = 0;
  for (const auto* what : kTroubleKinds) gauges.troubles[what] = 0;
  for (const auto& queue : installation.queues) gauges.workers[queue.name] = 0;
  for (const auto& service : installation.services) {
    if (service.silent()) continue;
    for (const auto& role : service.identity.roles) ++gauges.services[role];
    for (const auto& queue : service.queues) {
      if (const auto known = gauges.workers.find(queue); known != gauges.workers.end()) ++known->second;
    }
  }
  for (const auto& one : troubles) gauges.troubles[one.what] += one.count;
  return gauges;
}

}  // namespace takt
