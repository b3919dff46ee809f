#include "worker/run_executor.h"

#include <thread>

#include "core/log.h"

namespace takt {

namespace {

constexpr Duration kDatabasePause = std::chrono::milliseconds(300);

/// Repeats `body` while PostgreSQL is away, with a pause, until it answers or `give_up`.
template <typename Body>
auto while_unavailable(const char* doing, const std::function<bool()>& give_up, Body body) {
  for (bool logged = false;; logged = true) {
    try {
      return body();
    } catch (const DatabaseUnavailable& error) {
      if (give_up()) throw;
      if (!logged) log_warn("waiting for the database", {{"doing", doing}, {"error", error.what()}});
      std::this_thread::sleep_for(kDatabasePause);
    }
  }
}

}  // namespace

RunExecutor::RunExecutor(Database& database, Handlers handlers, Heartbeat& heartbeat, Random& random, Metrics& metrics,
                         std::string worker_id)
    : database_(database),
      handlers_(handlers),
      heartbeat_(heartbeat),
      random_(random),
      metrics_(metrics),
      worker_id_(std::move(worker_id)),
      ids_(database) {}

std::int64_t RunExecutor::next_run_id() {
  const std::scoped_lock lock(ids_mutex_);
  return ids_.next();
}

Claim RunExecutor::begin(const CatalogJob& job, const v1::JobTick& tick, const std::string& source, std::int64_t run_id,
                         const std::function<bool()>& give_up) {
  const auto& definition = job.definition;
  const int wanted = static_cast<int>(std::min<std::uint32_t>(tick.batch_size(), static_cast<std::uint32_t>(definition.batch_size)));
  const int batch = tick.dry_run() ? 0 : wanted == 0 ? definition.batch_size : wanted;
  return while_unavailable("claiming", give_up, [&] {
    accept_inline_items(database_, job, tick, source);
    return claim_batch(database_, {job, tick.id(), get_timestamp(tick.due_at()), source, run_id, worker_id_, batch});
  });
}

void RunExecutor::handle(const CatalogJob& job, RunRecord& run, const std::shared_ptr<RunControl>& control) {
  const auto began = std::chrono::steady_clock::now();
  run.results.assign(run.items.size(), HandlerResult{});
  std::vector<ClaimedItem> tried;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    if (job.definition.max_age && run.items[i].age > *job.definition.max_age) {
      run.results[i].item_class = ItemClass::expired;
      run.results[i].reason = "max_age";
      run.results[i].error = "older than max_age (" + format_duration(*job.definition.max_age) + ") before it could be tried";
    } else {
      tried.push_back(run.items[i]);
      places.push_back(i);
    }
  }
  std::vector<HandlerResult> results(tried.size());
  const RunContext context{job.definition, run.run_id, random_id(), began + job.definition.time_budget, *control};
  Handler& handler = std::holds_alternative<HttpHandlerConfig>(job.definition.handler) ? handlers_.http : handlers_.sql;
  handler.run(context, tried, results);
  for (std::size_t i = 0; i < places.size(); ++i) run.results[places[i]] = std::move(results[i]);

  const auto took = std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now() - began);
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    run.settlements.push_back(settle_item(run.items[i], run.results[i], job.definition, run.items[i].age + took, random_.uniform()));
  }
}

Settled RunExecutor::settle(RunRecord& run, const std::function<bool()>& give_up) {
  return while_unavailable("settling", give_up, [&] { return settle_run(database_, run); });
}

void RunExecutor::report(const RunRecord& run, const Settled& settled, bool lost) {
  const auto& name = run.job->definition.name;
  std::map<std::string_view, double> classes;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const bool dead = run.settlements[i].state == ItemState::dead;
    classes[dead ? "dead" : to_string(run.results[i].item_class)] += 1;
    if (dead) {
      metrics_.dead_letter(run.settlements[i].reason);
      log_info("item dead-lettered", {{"job", name},
                                      {"run", run.run_id},
                                      {"item", run.items[i].id},
                                      {"attempt", run.items[i].attempt},
                                      {"reason", run.settlements[i].reason},
                                      {"error", run.results[i].error}});
    } else if (log_enabled(LogLevel::debug)) {
      log_debug("item settled", {{"job", name},
                                 {"run", run.run_id},
                                 {"item", run.items[i].id},
                                 {"attempt", run.items[i].attempt},
                                 {"class", to_string(run.results[i].item_class)},
                                 {"reason", run.results[i].reason}});
    }
  }
  for (const auto& [item_class, count] : classes) metrics_.items(name, item_class, count);
  metrics_.batch_duration(name, run.duration_ms / 1000);
  const LogLevel level = lost || settled.items < static_cast<int>(run.items.size()) ? LogLevel::warn : LogLevel::debug;
  log(level, lost ? "run lost its lease" : "run finished",
      {{"job", name},
       {"run", run.run_id},
       {"tick", run.tick_id},
       {"status", to_string(run.status)},
       {"scanned", run.scanned},
       {"settled", settled.items},
       {"remaining", settled.remaining},
       {"ms", run.duration_ms}});
}

RunExecutor::Outcome RunExecutor::execute(const CatalogJob& job, const v1::JobTick& tick, const std::function<bool()>& give_up,
                                          const std::function<bool()>& stopping) {
  Outcome outcome;
  const std::string source = tick_source(tick.id());
  const auto began = std::chrono::steady_clock::now();
  auto& run = outcome.run;
  run.run_id = while_unavailable("numbering a run", give_up, [&] { return next_run_id(); });
  auto claim = begin(job, tick, source, run.run_id, give_up);
  if (claim.outcome == ClaimOutcome::duplicate) {
    metrics_.tick_duplicate();
    log_debug("tick duplicate", {{"tick", tick.id()}, {"job", tick.job()}});
    outcome.duplicate = true;
    return outcome;
  }
  run.job = &job;
  run.tick_id = tick.id();
  run.source = claim.source;
  run.worker = worker_id_;
  run.status = claim.outcome == ClaimOutcome::locked ? RunStatus::locked : RunStatus::completed;
  run.dry_run = tick.dry_run();
  run.items = std::move(claim.items);
  run.scanned = static_cast<int>(run.items.size());
  if (run.dry_run) {
    const int most =
        tick.batch_size() == 0
            ? job.definition.batch_size
            : static_cast<int>(std::min<std::uint32_t>(tick.batch_size(), static_cast<std::uint32_t>(job.definition.batch_size)));
    run.scanned = static_cast<int>(peek_due_items(database_, job.id, most).size());
  }
  for (const auto& item : run.items) run.oldest_age_s = std::max(run.oldest_age_s, static_cast<double>(item.overdue.count()) / 1000);

  const auto control = std::make_shared<RunControl>();
  heartbeat_.add(run.run_id, run.tick_id, job.definition.lease, control);
  if (stopping()) control->stop();
  handle(job, run, control);
  heartbeat_.remove(run.run_id);

  run.duration_ms = seconds_between(began, std::chrono::steady_clock::now()) * 1000;
  const bool continues =
      job.definition.drain && run.status == RunStatus::completed && !run.dry_run && source != "once" && !control->stopped();
  if (continues) run.next_tick_id = "more:" + random_id();
  outcome.settled = settle(run, [&] { return (control->cancelled() || !stopping()) && give_up(); });
  if (outcome.settled.continues) outcome.next_tick_id = run.next_tick_id;
  report(run, outcome.settled, control->lost());
  return outcome;
}

}  // namespace takt
