#include <iostream>

#include "cli/commands.h"
#include "cli/native_functions.h"
#include "cli/services.h"
#include "cli/table.h"
#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/process/random.h"
#include "core/text/text.h"
#include "dispatcher/retention.h"
#include "worker/handlers/http_handler.h"
#include "worker/handlers/sql_handler.h"
#include "worker/run_executor.h"

namespace takt {

namespace {

constexpr Duration kBeat = std::chrono::milliseconds(500);
/// How long, beyond the run's time budget, what was done waits to be written down while PostgreSQL is away or locked.
constexpr Duration kSettlingWait = std::chrono::seconds(60);
constexpr int kPruneBatch = 5000;

struct DueJob {
  std::string name;
  static constexpr auto fields() { return std::tuple(Field("name", &DueJob::name)); }
};
constexpr Query<NoRequest, DueJob> kDueJobs{
    "due_jobs",
    "SELECT j.name FROM takt.jobs j WHERE j.removed_at IS NULL AND NOT j.paused AND EXISTS (SELECT 1 FROM takt.items i "
    "WHERE i.job_id = j.id AND i.state = 0 AND i.run_at <= now()) ORDER BY j.name"};

std::vector<std::string> jobs_with_due_items(Database& database) {
  std::vector<std::string> names;
  for (auto& job : query(database, kDueJobs)) names.push_back(std::move(job.name));
  return names;
}

std::shared_ptr<const CatalogJob> job_named(JobCatalog& catalog, const std::string& name) {
  const auto answer = catalog.look_up(name);
  if (const auto* job = std::get_if<std::shared_ptr<const CatalogJob>>(&answer)) return *job;
  if (std::get<NoJob>(answer) == NoJob::unreadable)
    throw CommandFailed("job \"" + name + "\": this takt does not understand its definition; run the newer one that applied it");
  throw CommandFailed("no job named \"" + name + "\"; \"takt jobs\" lists those known");
}

void show_due(Database& database, const CatalogJob& job, int most, Table& table) {
  for (const auto& item : peek_due_items(database, job.id, most)) {
    table.add({job.definition.name, item.id, item.attempt, item.key.empty() ? nlohmann::json(nullptr) : nlohmann::json(item.key),
               static_cast<double>(item.overdue.count()) / 1000, printable(item.payload, 200)});
  }
}

/// Where no dispatcher leads, this command may be all that runs: then it does for history what the leader would. Whatever fails of it
/// keeps nobody from the work.
void keep_history(Database& database, const RetentionSettings& retention) try {
  if (is_led(database)) return;
  ensure_partitions(database, retention.history);
  drop_old_partitions(database, retention.history);
  prune_once(database, retention, kPruneBatch);
} catch (const std::exception& error) {
  log_warn("history not kept", {{"error", error.what()}, {"then", "tried again by the next call"}});
}

}  // namespace

void run_once(Context& context, const OnceOptions& options) {
  const auto& config = context.config();
  auto& database = context.current_database();
  const SystemClock own_clock;
  DatabaseClock clock(own_clock);
  JobCatalog catalog(database, clock);
  catalog.refresh();
  std::vector<std::string> names{options.job};
  if (options.job.empty()) names = jobs_with_due_items(database);

  if (options.dry_run) {
    Table table({"job", "item", "attempt", "key", "due_for_s", "payload_start"});
    for (const auto& name : names) {
      const auto job = job_named(catalog, name);
      const int own = job->definition.batch_size;
      show_due(database, *job, options.batch_size == 0 ? own : std::min(own, options.batch_size), table);
    }
    return table.print(options.json, "nothing is due");
  }

  keep_history(database, dispatcher_settings(config).retention);
  SeededRandom random(random_seed());
  Metrics metrics;
  const auto& worker = config.worker;
  HttpClient client({worker.host_connections, 100, worker.outbound});
  HttpHandler http(client, context.keys(), clock, metrics, worker.payload_in_errors);
  SqlHandler sql(config.databases, clock, metrics);
  NativeHandler native(native_functions(), metrics);
  const auto vital = context.vital_database();
  Heartbeat heartbeat(*vital);
  RunExecutor executor(database, {http, sql, native}, heartbeat, clock, random, metrics, "once-" + random_id().substr(0, 8));
  std::atomic<bool> finished{false};
  std::thread beats([&] {
    while (!finished) {
      try {
        heartbeat.beat(std::chrono::steady_clock::now());
      } catch (const std::exception& error) {
        log_warn("heartbeat failed", {{"error", error.what()}});
      }
      for (int i = 0; i < 10 && !finished; ++i) std::this_thread::sleep_for(kBeat / 10);
    }
  });
  Table table({"job", "run", "status", "scanned", "done", "noop", "skipped", "blocked", "failed", "dead", "remaining", "ms"});
  std::exception_ptr failure;
  try {
    for (const auto& name : names) {
      const auto job = job_named(catalog, name);
      if (const auto lack = executor.lacks(job->definition); !lack.empty()) throw CommandFailed("job " + name + ": here " + lack);
      v1::JobTick tick;
      tick.set_id("once:" + name + ":" + random_id());
      tick.set_job(name);
      tick.set_batch_size(static_cast<std::uint32_t>(options.batch_size));
      set_timestamp(*tick.mutable_due_at(), clock.now());
      const auto now = [] { return true; };
      auto under_way = executor.begin(job, tick, now);
      if (!under_way) throw CommandFailed("the tick " + tick.id() + " was seen before");
      const auto waited = [end = std::chrono::steady_clock::now() + job->definition.time_budget + kSettlingWait] {
        return std::chrono::steady_clock::now() > end;
      };
      const auto outcome = executor.finish(std::move(*under_way), {waited, [] { return false; }}, [] { return nullptr; });
      std::map<std::string, int> counts;
      for (std::size_t i = 0; i < outcome.run.items.size(); ++i) {
        counts[outcome.run.settlements[i].state == ItemState::dead ? "dead" : std::string(to_string(outcome.run.results[i].item_class))] +=
            1;
      }
      table.add({name, outcome.run.run_id, std::string(to_string(outcome.run.status)), outcome.run.scanned, counts["done"], counts["noop"],
                 counts["skipped"], counts["blocked"], counts["error"], counts["dead"], outcome.settled.remaining,
                 static_cast<long long>(outcome.run.duration_ms)});
    }
  } catch (...) {
    failure = std::current_exception();
  }
  finished = true;
  beats.join();
  table.print(options.json, "nothing is due");
  if (failure) std::rethrow_exception(failure);
}

}  // namespace takt
