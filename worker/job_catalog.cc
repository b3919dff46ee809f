#include "worker/job_catalog.h"

#include <set>

#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/observe/log.h"

namespace takt {

namespace {

struct Since {
  std::int64_t version = 0;
  static constexpr auto fields() { return std::tuple(&Since::version); }
};
/// A job that changed; without an id only the time.
struct Changed {
  std::optional<std::int64_t> id;
  std::string name, definition;
  bool removed = false;
  std::int64_t version = 0;
  std::int64_t now_us = 0;
  std::string queue;
  static constexpr auto fields() {
    return std::tuple(Field("id", &Changed::id), Field("name", &Changed::name), Field("definition", &Changed::definition),
                      Field("removed", &Changed::removed), Field("version", &Changed::version), Field("now_us", &Changed::now_us),
                      Field("queue", &Changed::queue));
  }
};
constexpr Query<Since, Changed> kChanged{"catalog_changed", R"sql(
  SELECT j.id, j.name, j.definition::text AS definition, j.removed_at IS NOT NULL AS removed, j.version,
         (extract(epoch FROM c.now) * 1000000)::bigint AS now_us, j.queue
    FROM (SELECT clock_timestamp() AS now) c LEFT JOIN takt.jobs j ON j.version > $1 ORDER BY j.version
)sql"};

constexpr Duration kRarely = std::chrono::seconds(1);
constexpr Duration kBetweenLookUps = std::chrono::milliseconds(100);

}  // namespace

std::vector<JobCatalog::Change> JobCatalog::read_changes(std::int64_t since) {
  const auto asked = clock_.steady();
  const auto rows = query(database_, kChanged, {since});
  clock_.hear(rows.at(0).now_us, asked);
  std::vector<Change> changes;
  for (const auto& row : rows) {
    if (!row.id) continue;
    Change change{row.name, row.removed, {row.version, row.queue, nullptr}};
    try {
      if (!change.removed) {
        change.entry.job =
            std::make_shared<const CatalogJob>(CatalogJob{*row.id, job_from_json(change.name, nlohmann::json::parse(row.definition))});
      }
    } catch (const nlohmann::json::exception& error) {
      log_error("job definition unreadable", {{"job", change.name},
                                              {"version", change.entry.version},
                                              {"error", error.what()},
                                              {"then", "its ticks wait; a newer takt wrote it: run that one here too"}});
    }
    changes.push_back(std::move(change));
  }
  return changes;
}

void JobCatalog::take(const std::vector<Change>& changes) {
  for (const auto& change : changes) {
    version_ = std::max(version_, change.entry.version);
    if (change.removed) {
      entries_.erase(change.name);
    } else {
      auto& entry = entries_[change.name];
      if (entry.version < change.entry.version) entry = change.entry;
    }
  }
}

/// Returns once the query of that number has ended, and throws if the last one failed.
void JobCatalog::ask(Lock& lock, std::uint64_t number) {
  while (ended_ < number) {
    if (ended_ < asked_) {
      answered_.wait(lock, [this, under_way = asked_] { return ended_ >= under_way; });
      continue;
    }
    ++asked_;
    last_look_up_ = std::chrono::steady_clock::now();
    const auto end = [&] {
      ended_ = asked_;
      answered_.notify_all();
    };
    const auto since = version_;
    lock.unlock();
    try {
      const auto changes = read_changes(since);
      lock.lock();
      take(changes);
    } catch (const std::exception& error) {
      if (!lock.owns_lock()) lock.lock();
      failure_ = error.what();
      end();
      throw;
    }
    failure_.reset();
    end();
  }
  if (failure_) throw DatabaseUnavailable(*failure_);
}

void JobCatalog::refresh() {
  Lock lock(mutex_);
  ask(lock, asked_ + 1);
}

void JobCatalog::refresh_rarely() {
  Lock lock(mutex_);
  if (const auto now = std::chrono::steady_clock::now(); now - last_rarely_ >= kRarely) {
    last_rarely_ = now;
    ask(lock, asked_ + 1);
  } else {
    ask(lock, asked_);  // one that is under way is waited for
  }
}

CatalogAnswer JobCatalog::look_up(const std::string& name) {
  Lock lock(mutex_);
  auto found = entries_.find(name);
  if (found == entries_.end()) {
    const auto next = asked_ + 1;
    answered_.wait_until(lock, last_look_up_ + kBetweenLookUps, [&] { return ended_ >= next; });
    ask(lock, next);
    found = entries_.find(name);
    if (found == entries_.end()) return NoJob::unknown;
  }
  if (!found->second.job) return NoJob::unreadable;
  return found->second.job;
}

std::shared_ptr<const CatalogJob> JobCatalog::known(const std::string& name) {
  const Lock lock(mutex_);
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second.job;
}

std::vector<std::shared_ptr<const CatalogJob>> JobCatalog::jobs() {
  const std::scoped_lock lock(mutex_);
  std::vector<std::shared_ptr<const CatalogJob>> jobs;
  for (const auto& [name, entry] : entries_) {
    if (entry.job) jobs.push_back(entry.job);
  }
  return jobs;
}

std::vector<std::string> JobCatalog::queues() {
  std::set<std::string> queues{"default"};
  const Lock lock(mutex_);
  for (const auto& [name, entry] : entries_) queues.insert(entry.queue);
  queues.erase(amqp::kBenchQueue);
  return {queues.begin(), queues.end()};
}

}  // namespace takt
