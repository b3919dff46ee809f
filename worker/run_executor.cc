#include "worker/run_executor.h"

#include <algorithm>
#include <thread>

#include "core/db/passing.h"
#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"
#include "core/text/text.h"

namespace takt {

namespace {

struct Hold {
  std::int64_t job_id = 0;
  Duration pause{};
  std::string why;
  static constexpr auto fields() { return std::tuple(&Hold::job_id, &Hold::pause, &Hold::why); }
};

constexpr Duration kDatabasePause = std::chrono::milliseconds(300);
constexpr Duration kLockPause = std::chrono::milliseconds(100);
/// How long a chain of runs goes on from where the last one ended before it looks for the oldest item again.
constexpr Duration kSearchInterval = std::chrono::seconds(1);
constexpr Duration kLongestHold = std::chrono::seconds(1);

/// While the schema is another version's, a worker of that version may begin a tick; what was begun here is ended here.
constexpr Duration kSchemaPatience = std::chrono::milliseconds(500);

/// Repeats `body` while PostgreSQL is away, or fails in a way that may_pass(), with a pause, until it answers or `give_up`. `between`
/// is called before each further try.
template <typename Body>
auto while_unavailable(const char* doing, const std::function<bool()>& give_up, Body body, const std::function<void()>& between = nullptr,
                       std::optional<Duration> schema_patience = std::nullopt) {
  const auto began = std::chrono::steady_clock::now();
  for (bool logged = false;; logged = true) {
    Duration pause = kDatabasePause;
    try {
      return body();
    } catch (const SchemaChanged& error) {
      if (give_up() || (schema_patience && std::chrono::steady_clock::now() - began > *schema_patience)) throw;
      if (!logged) log_warn("waiting for the schema", {{"doing", doing}, {"error", error.what()}});
    } catch (const DatabaseUnavailable& error) {
      if (give_up()) throw;
      if (!logged) log_warn("waiting for the database", {{"doing", doing}, {"error", error.what()}});
    } catch (const DatabaseError& error) {
      if (!may_pass(error) || give_up()) throw;
      if (!logged)
        log_warn(error.retryable() ? "waiting for a lock" : "waiting for the database", {{"doing", doing}, {"error", error.what()}});
      if (error.retryable()) pause = kLockPause;
    }
    if (between) between();
    std::this_thread::sleep_for(pause);
  }
}

constexpr std::size_t kMaxReasonBytes = 100;
constexpr std::size_t kMaxErrorBytes = 1024;
constexpr Duration kLongestRetryAfter = std::chrono::hours(24 * 366);
constexpr std::int64_t kMostCounted = 1'000'000'000'000;

/// What a handler answered, made harmless: PostgreSQL's texts are UTF-8 without NUL, and its arrays hold numbers.
void clean(HandlerResult& result) {
  if (result.item_class < ItemClass::done || result.item_class > ItemClass::interrupted) result.item_class = ItemClass::error;
  if (!result.reason.empty()) result.reason = printable(result.reason, kMaxReasonBytes);
  if (!result.error.empty()) result.error = printable(result.error, kMaxErrorBytes);
  if (!(result.seconds >= 0 && result.seconds < 1e9)) result.seconds = 0;  // NaN, too
  if (result.retry_after) result.retry_after = std::clamp(*result.retry_after, Duration(0), kLongestRetryAfter);
  for (auto* count : {&result.processed, &result.failed, &result.skipped}) *count = std::clamp<std::int64_t>(*count, 0, kMostCounted);
  if (result.queue_depth) result.queue_depth = std::clamp<std::int64_t>(*result.queue_depth, 0, kMostCounted);
}

/// Runs the handler. What it throws ends, as an error, each item that it has not tried or not ended.
void run_guarded(Handler& handler, const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  std::string thrown;
  try {
    handler.run(context, items, results);
  } catch (const std::exception& error) {
    thrown = error.what();
  } catch (...) {
    thrown = "something that is no std::exception";
  }
  for (auto& result : results) {
    if (!thrown.empty() && result.item_class == ItemClass::handed_back) {
      result.item_class = ItemClass::error;
      result.reason = "handler_exception";
      result.error = "the handler threw: " + thrown;
    }
    clean(result);
  }
  if (!thrown.empty()) log_error("handler threw", {{"job", context.job.name}, {"run", context.run_id}, {"error", printable(thrown, 200)}});
}

}  // namespace

RunExecutor::RunExecutor(Database& database, Handlers handlers, Heartbeat& heartbeat, const Clock& clock, Random& random, Metrics& metrics,
                         std::string worker_id)
    : database_(database),
      clock_(clock),
      handlers_(handlers),
      chains_(database),
      heartbeat_(heartbeat),
      random_(random),
      metrics_(metrics),
      failing_(clock),
      circuits_(database, worker_id),
      worker_id_(std::move(worker_id)),
      ids_(database) {}

std::int64_t RunExecutor::next_run_id() {
  const std::scoped_lock lock(ids_mutex_);
  return ids_.next();
}

RunExecutor::UnderWay RunExecutor::started(std::shared_ptr<const CatalogJob> job, const std::string& tick_id, std::int64_t run_id,
                                           Claim&& claim) {
  UnderWay under_way;
  auto& run = under_way.run;
  run.run_id = run_id;
  run.job = job.get();
  run.tick_id = tick_id;
  run.source = std::move(claim.source);
  run.worker = worker_id_;
  run.status = claim.outcome == ClaimOutcome::locked ? RunStatus::locked : RunStatus::completed;
  run.items = std::move(claim.items);
  run.scanned = static_cast<int>(run.items.size());
  for (const auto& item : run.items) run.oldest_age_s = std::max(run.oldest_age_s, static_cast<double>(item.overdue.count()) / 1000);
  run.drains = job->definition.drain && run.status == RunStatus::completed && run.source != "once" && run.source != "alone";
  under_way.job = std::move(job);
  under_way.began = under_way.searched = std::chrono::steady_clock::now();
  return under_way;
}

std::optional<RunExecutor::UnderWay> RunExecutor::begin(std::shared_ptr<const CatalogJob> job, const v1::JobTick& tick,
                                                        const std::function<bool()>& give_up) {
  const auto began = std::chrono::steady_clock::now();
  const std::string source = tick_source(tick.id());
  const auto run_id = while_unavailable(
      "numbering a run", give_up, [&] { return next_run_id(); }, nullptr, kSchemaPatience);
  const auto own = static_cast<std::uint32_t>(job->definition.batch_size);
  const int wanted = static_cast<int>(tick.batch_size() == 0 ? own : std::min(tick.batch_size(), own));
  const int batch = tick.dry_run() ? wanted : std::min(wanted, readiness(job->definition).items);
  crash_point("worker.before_claim");
  bool key_is_locked = false;
  const auto begin_it = [&] {
    if (!tick.dry_run() && !accept_inline_items(database_, *job, tick, source)) {
      key_is_locked = true;
      return Claim{};
    }
    return claim_batch(database_, {.job = *job,
                                   .tick_id = tick.id(),
                                   .due_at = get_timestamp(tick.due_at()),
                                   .source = source,
                                   .run_id = run_id,
                                   .worker = worker_id_,
                                   .batch_size = tick.dry_run() ? 0 : batch,
                                   .dry_run = tick.dry_run()});
  };
  auto claim = while_unavailable("claiming", give_up, begin_it, nullptr, kSchemaPatience);
  if (key_is_locked) {
    put_off(*job, tick);
    return std::nullopt;
  }
  if (claim.outcome == ClaimOutcome::duplicate) {
    metrics_.tick_duplicate();
    log_debug("tick duplicate", {{"tick", tick.id()}, {"job", tick.job()}});
    return std::nullopt;
  }
  crash_point("worker.after_claim");
  auto under_way = started(std::move(job), tick.id(), run_id, std::move(claim));
  under_way.began = began;
  if (tick.dry_run()) {
    under_way.run.dry_run = true;
    under_way.run.drains = false;
    const auto carried = items_carried(*under_way.job, tick, source);
    under_way.run.scanned = std::min(batch, static_cast<int>(peek_due_items(database_, under_way.job->id, batch).size()) + carried);
  }
  return under_way;
}

std::optional<Duration> RunExecutor::leaves_alone(const JobDefinition& job, const v1::JobTick& tick) const {
  if (tick.dry_run() || tick_source(tick.id()) != "due") return std::nullopt;
  const auto ready = handler_of(job).readiness(job);
  return ready.items == 0 ? std::optional(ready.pause) : std::nullopt;
}

Readiness RunExecutor::readiness(const JobDefinition& job) const {
  auto& handler = handler_of(job);
  return handler.lacks(job).empty() ? handler.readiness(job) : Readiness{0, Duration(0)};
}

Handler& RunExecutor::handler_of(const JobDefinition& job) const {
  if (std::holds_alternative<HttpHandlerConfig>(job.handler)) return handlers_.http;
  if (std::holds_alternative<SqlHandlerConfig>(job.handler)) return handlers_.sql;
  return handlers_.native;
}

void RunExecutor::handle(const CatalogJob& job, RunRecord& run, const std::shared_ptr<RunControl>& control) {
  const auto began = std::chrono::steady_clock::now();
  run.results.assign(run.items.size(), HandlerResult{});
  const auto expired = [&](const ClaimedItem& item) { return job.definition.max_age && item.age > *job.definition.max_age; };
  const bool any_expired = std::any_of(run.items.begin(), run.items.end(), expired);
  const RunContext context{job.definition, run.run_id, random_id(), began + job.definition.time_budget, *control};
  if (!any_expired) {
    run_guarded(handler_of(job.definition), context, run.items, run.results);
  } else {
    std::vector<ClaimedItem> tried;
    std::vector<std::size_t> places;  // of the items that are tried
    for (std::size_t i = 0; i < run.items.size(); ++i) {
      if (expired(run.items[i])) {
        run.results[i].item_class = ItemClass::expired;
        run.results[i].reason = "max_age";
        run.results[i].error = "older than max_age (" + format_duration(*job.definition.max_age) + ") before it could be tried";
      } else {
        tried.push_back(run.items[i]);
        places.push_back(i);
      }
    }
    std::vector<HandlerResult> results(tried.size());
    run_guarded(handler_of(job.definition), context, tried, results);
    for (std::size_t i = 0; i < places.size(); ++i) run.results[places[i]] = std::move(results[i]);
  }

  const auto took = std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now() - began);
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    run.settlements.push_back(settle_item(run.items[i], run.results[i], job.definition, run.items[i].age + took, random_.uniform()));
  }
}

Settled RunExecutor::settle(RunRecord& run, SteadyTime searched, const std::shared_ptr<const CatalogJob>& next_job,
                            const std::function<bool()>& give_up, std::optional<UnderWay>& next) {
  bool waited = false;
  const auto between = [&] {
    waited = true;
    heartbeat_.renew(run.run_id);
  };
  while_unavailable(
      "settling", give_up, [&] { spare_lost_attempts(database_, run, random_.uniform()); }, between);
  if (!next_job || !run.drains || next_job->definition.concurrency != run.job->definition.concurrency) {
    return while_unavailable(
        "settling", give_up, [&] { return settle_run(database_, run); }, between);
  }
  const auto next_run = while_unavailable(
      "numbering a run", give_up, [&] { return next_run_id(); }, between);
  const ClaimRequest request{.job = *next_job,
                             .tick_id = next_tick_id(run),
                             .due_at = clock_.now(),
                             .source = "more",
                             .run_id = next_run,
                             .worker = worker_id_,
                             .batch_size = std::min(next_job->definition.batch_size, readiness(next_job->definition).items),
                             .goes_on = std::chrono::steady_clock::now() - searched < kSearchInterval};
  Claim claim;
  // What failed in company is tried again alone: a lock that one run waits for is not the others'.
  const auto settled = while_unavailable(
      "settling", give_up,
      [&] { return waited ? settle_and_claim(database_, run, request, claim) : chains_.settle_and_claim(run, request, claim); }, between);
  if (claim.outcome != ClaimOutcome::duplicate) {
    next = started(next_job, request.tick_id, next_run, std::move(claim));
    if (request.goes_on) next->searched = searched;
  }
  return settled;
}

/// What failed while its destination came to be left alone was sent with what was too much: it says nothing of the item.
void RunExecutor::spare_last_attempts(RunRecord& run, Duration took) {
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto& settlement = run.settlements[i];
    if (settlement.state != ItemState::dead || run.results[i].item_class != ItemClass::error || settlement.reason != "max_attempts")
      continue;
    run.settlements[i] = settle_item(run.items[i], run.results[i], run.job->definition, run.items[i].age + took, random_.uniform(), 1);
  }
}

void RunExecutor::put_off(const CatalogJob& job, const v1::JobTick& tick) {
  const std::string source = tick_source(tick.id());
  const std::string lack = lacks(job.definition);
  log_debug("tick put off", {{"tick", tick.id()}, {"job", tick.job()}, {"lacks", lack}});
  if (!lack.empty()) hold(job, kLongestHold, "worker " + worker_id_ + " lacks what the job needs: " + lack);
  if (source == "due") return;
  if (source == "more") return end_unbegun_tick(database_, tick.id());
  put_off_tick(database_, job, tick, source);
}

void RunExecutor::hold(const CatalogJob& job, Duration pause, const std::string& why) {
  constexpr Query<Hold, NoRow> kHold{"hold_job", R"sql(
    UPDATE takt.jobs SET held_until = now() + $2::bigint * interval '1 ms', held_for = nullif($3, '')
     WHERE id = $1 AND (held_until IS NULL OR held_until <= now()))sql"};
  try {
    execute(database_, kHold, {job.id, std::min(pause, kLongestHold), printable(why, kMaxErrorBytes)});
  } catch (const std::exception& error) {
    log_debug("job not held", {{"job", job.definition.name}, {"error", error.what()}});  // ticks then come, and find it so again
  }
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
                                 {"reason", run.results[i].reason},
                                 {"error", run.results[i].error}});
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

RunExecutor::Outcome RunExecutor::finish(UnderWay&& under_way, const Waits& waits,
                                         const std::function<std::shared_ptr<const CatalogJob>()>& continue_here) {
  Outcome outcome;
  auto& run = outcome.run = std::move(under_way.run);
  const auto control = std::make_shared<RunControl>();
  const LivingLease lease(heartbeat_, run.run_id, run.tick_id, under_way.job->definition.lease, control);
  if (waits.stopping()) control->stop();
  handle(*under_way.job, run, control);
  crash_point("worker.before_settle");

  run.duration_ms = seconds_between(under_way.began, std::chrono::steady_clock::now()) * 1000;
  const Duration took(static_cast<std::int64_t>(run.duration_ms));
  if (circuits_.exchange(under_way.job->definition.name, handler_of(under_way.job->definition).circuit(under_way.job->definition), took)) {
    spare_last_attempts(run, took);
  }
  failing_.note(run);
  const auto ready = readiness(under_way.job->definition);
  run.drains = run.drains && !control->stopped() && ready.items > 0;
  heartbeat_.settling(run.run_id);
  outcome.settled = settle(run, under_way.searched, continue_here(), waits.give_up, outcome.next);
  crash_point("worker.after_settle");
  if (ready.pause > Duration(0)) hold(*under_way.job, ready.pause);
  if (outcome.settled.continues && !outcome.next) outcome.next_tick_id = continuation_id(run.run_id);
  report(run, outcome.settled, control->lost());
  return outcome;
}

}  // namespace takt
