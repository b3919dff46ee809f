#include "worker/settle.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "worker/claim_rows.h"

namespace takt {

namespace {

constexpr std::size_t kMaxRunErrors = 10;
/// A settling that waited for a lock in vain is not tried again here: between two tries the caller renews the run's lease.
constexpr int kOneTry = 1;

/// The parameters of takt.end_run(). What leaves the run's row is told by arrays with a place for each such item; most runs have none.
struct EndRun {
  std::string tick_id;
  std::int64_t run_id = 0, job_id = 0;
  std::string job;
  Duration dedupe_window{};
  bool exclusive = false;
  std::string status;
  std::vector<std::int64_t> counts;  ///< scanned, done, noop, skipped, blocked, error, dead, handed back
  double oldest_age_s = 0, duration_ms = 0;
  std::optional<std::string> errors, reported;  ///< JSON
  std::vector<double> durations;                ///< of its items, in milliseconds
  std::optional<std::vector<std::int64_t>> noops;
  bool has_keys = false;
  std::optional<std::vector<std::int64_t>> ids, states;
  std::optional<std::vector<std::string>> classes;
  std::optional<std::vector<std::int64_t>> delays_ms, unspent;
  std::optional<std::vector<std::string>> reasons, item_errors, dead_reasons;
  bool drains = false;
  std::optional<std::string> next_tick;
  static constexpr auto fields() {
    return std::tuple(&EndRun::tick_id, &EndRun::run_id, &EndRun::job_id, &EndRun::job, &EndRun::dedupe_window, &EndRun::exclusive,
                      &EndRun::status, &EndRun::counts, &EndRun::oldest_age_s, &EndRun::duration_ms, &EndRun::errors, &EndRun::reported,
                      &EndRun::durations, &EndRun::noops, &EndRun::has_keys, &EndRun::ids, &EndRun::states, &EndRun::classes,
                      &EndRun::delays_ms, &EndRun::unspent, &EndRun::reasons, &EndRun::item_errors, &EndRun::dead_reasons, &EndRun::drains,
                      &EndRun::next_tick);
  }
};
struct EndAndBegin : EndRun, BeginRun {
  bool goes_on = false;
  static constexpr auto fields() { return std::tuple_cat(EndRun::fields(), BeginRun::fields(), std::tuple(&EndAndBegin::goes_on)); }
};
struct EndedRow {
  bool recorded = false;
  int remaining = 0;
  bool continues = false;
  static constexpr auto fields() {
    return std::tuple(Field("recorded", &EndedRow::recorded), Field("remaining", &EndedRow::remaining),
                      Field("continues", &EndedRow::continues));
  }
};
/// The run that ended, beside each row of the claim that followed.
struct EndedAndNextRow : ClaimRow, EndedRow {
  static constexpr auto fields() { return std::tuple_cat(EndedRow::fields(), ClaimRow::fields()); }
};

/// The parameters of takt.go_on(). Runs of one job, a place in each array for each.
struct GoOn {
  std::vector<std::string> ticks;
  std::vector<std::int64_t> runs, next_runs;
  std::vector<double> oldest_ages_s, durations_ms;
  std::vector<std::optional<std::string>> reported;          ///< JSON
  std::vector<std::optional<std::string>> durations, noops;  ///< array literals
  bool has_keys = false;
  std::int64_t job_id = 0;
  Duration dedupe_window{};
  std::string worker;
  Duration lease{};
  int batch_size = 0;
  bool goes_on = true;
  static constexpr auto fields() {
    return std::tuple(&GoOn::ticks, &GoOn::runs, &GoOn::next_runs, &GoOn::oldest_ages_s, &GoOn::durations_ms, &GoOn::reported,
                      &GoOn::durations, &GoOn::noops, &GoOn::has_keys, &GoOn::job_id, &GoOn::dedupe_window, &GoOn::worker, &GoOn::lease,
                      &GoOn::batch_size, &GoOn::goes_on);
  }
};
/// Of a run that was still ours (its number, from 1), of an item, or of what is due all the same.
struct GoOnRow : ClaimRow {
  std::optional<int> run;
  int remaining = 0;
  static constexpr auto fields() {
    return std::tuple_cat(std::tuple(Field("n", &GoOnRow::run), Field("remaining", &GoOnRow::remaining)), ClaimRow::fields());
  }
};

struct Dying {
  std::string tick_id;
  std::int64_t run_id = 0;
  std::vector<std::int64_t> ids;
  static constexpr auto fields() { return std::tuple(&Dying::tick_id, &Dying::run_id, &Dying::ids); }
};
struct LostAttempts {
  std::int64_t id = 0;
  int count = 0;
  static constexpr auto fields() { return std::tuple(Field("id", &LostAttempts::id), Field("count", &LostAttempts::count)); }
};

// The run's row by its key; the tick's row is the fence. See takt.end_run.
#define TAKT_END_RUN                                                                                                           \
  "takt.end_run($1, $2, $3, $4, $5, $6, $7, $8::integer[], $9, $10, $11::jsonb, $12::jsonb, $13::real[], $14::bigint[], $15, " \
  "$16::bigint[], $17::smallint[], $18::text[], $19::bigint[], $20::smallint[], $21::text[], $22::text[], $23::text[], $24, $25)"
constexpr Query<EndRun, EndedRow> kEnd{"end_run", "SELECT recorded, remaining, continues FROM " TAKT_END_RUN};

// Ends one run and begins the next of the same job: one round trip, one commit. begin_run() is given no tick, and does
// nothing, where no continuation is to follow.
constexpr Query<EndAndBegin, EndedAndNextRow> kEndAndBegin{
    "end_run_begin_next",
    "WITH ended AS MATERIALIZED (SELECT * FROM " TAKT_END_RUN ") SELECT recorded, remaining, continues, " TAKT_CLAIM_COLUMNS
    " FROM ended e LEFT JOIN LATERAL"
    " takt.begin_run(CASE WHEN e.continues THEN $26 END, $27, $28, $29, $30, $31, $32, $33, $34, $35,"
    " e.from_priority, e.from_run_at, CASE WHEN $36 THEN e.from_id END) b ON true"};

// The same for runs that leave nothing behind, in chains: see takt.go_on.
constexpr Query<GoOn, GoOnRow> kGoOn{"go_on", "SELECT n, remaining, " TAKT_CLAIM_COLUMNS
                                              " FROM takt.go_on($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"};

// By the tick's row, which names the run as long as it is ours; then served by failed_attempts_item.
constexpr Query<Dying, LostAttempts> kLostAttempts{"lost_attempts", R"sql(
  SELECT h.id, count(*) AS count
    FROM takt.ticks t JOIN takt.runs r ON r.id = t.run_id AND r.started_at = t.begun_at CROSS JOIN LATERAL takt.items_of(r) h
    JOIN takt.failed_attempts a ON a.item_id = h.id AND a.replay = h.replay AND a.class = 'lost'
   WHERE t.id = $1 AND t.run_id = $2 AND h.id = ANY ($3)
   GROUP BY h.id
)sql"};

struct Counts {
  int done = 0, noop = 0, skipped = 0, blocked = 0, error = 0, dead = 0, handed_back = 0;
};

Counts count(const RunRecord& run) {
  Counts counts;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    if (run.settlements[i].state == ItemState::dead) {
      ++counts.dead;
      continue;
    }
    switch (run.results[i].item_class) {
      case ItemClass::done: ++counts.done; break;
      case ItemClass::noop: ++counts.noop; break;
      case ItemClass::skipped: ++counts.skipped; break;
      case ItemClass::blocked: ++counts.blocked; break;
      case ItemClass::handed_back:
      case ItemClass::interrupted: ++counts.handed_back; break;
      case ItemClass::error:
      case ItemClass::fatal:
      case ItemClass::expired: ++counts.error; break;
    }
  }
  return counts;
}

std::optional<std::string> first_errors(const RunRecord& run) {
  auto errors = nlohmann::json::array();
  for (std::size_t i = 0; i < run.items.size() && errors.size() < kMaxRunErrors; ++i) {
    if (run.results[i].reason.empty() && run.settlements[i].reason.empty()) continue;
    const auto& reason = run.results[i].reason.empty() ? run.settlements[i].reason : run.results[i].reason;
    errors.push_back({{"item", run.items[i].id}, {"reason", reason}, {"error", run.results[i].error}});
  }
  if (errors.empty()) return std::nullopt;
  return errors.dump();
}

std::optional<std::string> reported(const RunRecord& run) {
  std::int64_t processed = 0, failed = 0, skipped = 0;
  std::optional<std::int64_t> depth;
  for (const auto& result : run.results) {
    processed += result.processed;
    failed += result.failed;
    skipped += result.skipped;
    if (result.queue_depth) depth = result.queue_depth;
  }
  if (processed == 0 && failed == 0 && skipped == 0 && !depth) return std::nullopt;
  nlohmann::json sums{{"processed", processed}, {"failed", failed}, {"skipped", skipped}};
  if (depth) sums["queueDepth"] = *depth;
  return sums.dump();
}

/// The items that do not stay in their run's row.
void tell_leaving(const RunRecord& run, EndRun& request) {
  std::vector<std::int64_t> ids, states, delays, unspent;
  std::vector<std::string> classes, reasons, errors, dead_reasons;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto& settlement = run.settlements[i];
    if (settlement.state == ItemState::done) continue;
    ids.push_back(run.items[i].id);
    states.push_back(static_cast<std::int64_t>(settlement.state));
    classes.emplace_back(to_string(run.results[i].item_class));
    delays.push_back(settlement.delay.count());
    unspent.push_back(settlement.spent ? 0 : 1);
    reasons.push_back(run.results[i].reason);
    errors.push_back(run.results[i].error);
    dead_reasons.push_back(settlement.reason);
  }
  if (ids.empty()) return;
  request.ids = std::move(ids);
  request.states = std::move(states);
  request.classes = std::move(classes);
  request.delays_ms = std::move(delays);
  request.unspent = std::move(unspent);
  request.reasons = std::move(reasons);
  request.item_errors = std::move(errors);
  request.dead_reasons = std::move(dead_reasons);
}

/// What of its items stays in the run's row.
struct Staying {
  std::vector<double> durations;  ///< milliseconds
  std::optional<std::vector<std::int64_t>> noops;
  bool has_keys = false;
};

Staying staying_items(const RunRecord& run) {
  Staying staying;
  staying.durations.reserve(run.items.size());
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    staying.durations.push_back(run.results[i].seconds * 1000);
    if (run.results[i].item_class == ItemClass::noop) {
      if (!staying.noops) staying.noops.emplace();
      staying.noops->push_back(run.items[i].id);
    }
    staying.has_keys = staying.has_keys || !run.items[i].key.empty();
  }
  return staying;
}

EndRun end_run(const RunRecord& run, std::optional<std::string> next_tick) {
  auto staying = staying_items(run);
  const auto counts = count(run);
  const auto& job = run.job->definition;
  EndRun request;
  request.tick_id = run.tick_id;
  request.run_id = run.run_id;
  request.job_id = run.job->id;
  request.job = job.name;
  request.dedupe_window = job.dedupe_window;
  request.exclusive = job.concurrency == 1;
  request.status = to_string(run.status);
  request.counts = {run.scanned, counts.done, counts.noop, counts.skipped, counts.blocked, counts.error, counts.dead, counts.handed_back};
  request.oldest_age_s = run.oldest_age_s;
  request.duration_ms = run.duration_ms;
  request.errors = first_errors(run);
  request.reported = reported(run);
  request.durations = std::move(staying.durations);
  request.noops = std::move(staying.noops);
  request.has_keys = staying.has_keys;
  tell_leaving(run, request);
  request.drains = run.drains;
  request.next_tick = std::move(next_tick);
  return request;
}

/// Whether takt.go_on() can end the run and begin the next under its tick.
bool leaves_nothing(const RunRecord& run) {
  const auto stays = [](const Settlement& settlement) { return settlement.state == ItemState::done; };
  return run.source == "more" && run.status == RunStatus::completed && run.job->definition.concurrency != 1 &&
         std::all_of(run.settlements.begin(), run.settlements.end(), stays) && !first_errors(run);
}

/// An array literal, for an array of arrays of unequal length.
template <typename Values>
std::optional<std::string> literal(const Values& values) {
  return Params::of(values).values().front();
}

std::vector<GoOnRow> go_on(Database& database, const std::vector<Continuation*>& chains) {
  const auto& ended = *chains.front()->run.job;
  const auto& next = chains.front()->next;
  GoOn request;
  request.job_id = ended.id;
  request.dedupe_window = ended.definition.dedupe_window;
  request.worker = next.worker;
  request.lease = next.job.definition.lease;
  request.batch_size = next.batch_size;
  for (const auto* chain : chains) {
    const auto& run = chain->run;
    const auto staying = staying_items(run);
    request.ticks.push_back(run.tick_id);
    request.runs.push_back(run.run_id);
    request.next_runs.push_back(chain->next.run_id);
    request.oldest_ages_s.push_back(run.oldest_age_s);
    request.durations_ms.push_back(run.duration_ms);
    request.reported.push_back(reported(run));
    request.durations.push_back(literal(staying.durations));
    request.noops.push_back(literal(staying.noops));
    request.has_keys = request.has_keys || staying.has_keys;
    request.goes_on = request.goes_on && chain->next.goes_on;
  }
  return query_retrying(database, kGoOn, request, kOneTry);
}

std::vector<EndedAndNextRow> end_and_begin(Database& database, const RunRecord& run, const ClaimRequest& next) {
  EndAndBegin request;
  static_cast<EndRun&>(request) = end_run(run, std::nullopt);
  static_cast<BeginRun&>(request) = begin_run(next);
  request.goes_on = next.goes_on;
  return query_retrying(database, kEndAndBegin, request, kOneTry);
}

/// `Row`: EndedRow or EndedAndNextRow.
template <typename Row>
Settled settled_of(const RunRecord& run, const std::vector<Row>& ended) {
  if (ended.empty() || !ended.front().recorded) return {};
  return {true, run.scanned, ended.front().remaining, ended.front().continues};
}

/// For a run that was not recorded. It was ended already: by this very statement, before its answer was lost, or by a rescue.
Settled recovered(Database& database, const RunRecord& run, const ClaimRequest& next, Claim& claim) {
  claim = recover_claim(database, next.tick_id, next.run_id);
  if (claim.outcome == ClaimOutcome::duplicate) return {};
  return {true, run.scanned, static_cast<int>(claim.items.size()), true};
}

/// What the next run would claim is too large to be handed out: a wake tick's claim takes less of it.
Settled settle_alone(Database& database, RunRecord run) {
  run.drains = false;
  return settle_run(database, run);
}

}  // namespace

std::string_view to_string(RunStatus status) {
  switch (status) {
    case RunStatus::completed: return "completed";
    case RunStatus::locked: return "locked";
    case RunStatus::failed: return "failed";
  }
  return "?";
}

std::string continuation_id(std::int64_t run_id) { return "more:" + std::to_string(run_id); }

std::string next_tick_id(const RunRecord& run) { return leaves_nothing(run) ? run.tick_id : continuation_id(run.run_id); }

void spare_lost_attempts(Database& database, RunRecord& run, double uniform) {
  std::vector<std::int64_t> dying;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto& settlement = run.settlements[i];
    const bool dies = settlement.state == ItemState::dead && run.results[i].item_class == ItemClass::error;
    if (dies && run.items[i].attempt > 1 && settlement.reason == "max_attempts") dying.push_back(run.items[i].id);
  }
  if (dying.empty()) return;
  std::map<std::int64_t, int> lost;
  for (const auto& [id, count] : query_retrying(database, kLostAttempts, {run.tick_id, run.run_id, dying}, kOneTry)) lost[id] = count;
  const Duration took(static_cast<std::int64_t>(run.duration_ms));
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto found = lost.find(run.items[i].id);
    if (found == lost.end()) continue;
    run.settlements[i] = settle_item(run.items[i], run.results[i], run.job->definition, run.items[i].age + took, uniform, found->second);
  }
}

Settled settle_run(Database& database, const RunRecord& run) {
  const auto request = end_run(run, run.drains ? std::optional(continuation_id(run.run_id)) : std::nullopt);
  return settled_of(run, query_retrying(database, kEnd, request, kOneTry));
}

Settled settle_and_claim(Database& database, const RunRecord& run, const ClaimRequest& next, Claim& claim) {
  if (goes_on_in_place(run, next)) {
    Continuation only{run, next, claim, {}};
    settle_and_claim(database, {&only});
    return only.settled;
  }
  std::vector<EndedAndNextRow> rows;
  try {
    rows = end_and_begin(database, run, next);
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    return settle_alone(database, run);
  }
  const auto settled = settled_of(run, rows);
  if (!settled.recorded) return recovered(database, run, next, claim);
  claim = take_claim(std::span(rows));
  return settled;
}

bool goes_on_in_place(const RunRecord& run, const ClaimRequest& next) { return next.tick_id == run.tick_id; }

void settle_and_claim(Database& database, const std::vector<Continuation*>& chains) {
  std::vector<GoOnRow> rows;
  try {
    rows = go_on(database, chains);
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    for (auto* chain : chains) chain->settled = settle_alone(database, chain->run);
    return;
  }
  for (auto* chain : chains) chain->settled = {};
  std::span<GoOnRow> left(rows);
  std::vector<Continuation*> recorded;  // in the order in which items are dealt to them
  for (; !left.empty() && left.front().run; left = left.subspan(1))
    recorded.push_back(chains[static_cast<std::size_t>(*left.front().run) - 1]);
  int due = 0;  // where some chain has ended
  if (!left.empty() && !left.back().item_id) {
    due = left.back().remaining;
    left = left.first(left.size() - 1);
  }
  for (auto* chain : recorded) {
    const auto dealt = left.first(std::min(left.size(), static_cast<std::size_t>(chain->next.batch_size)));
    left = left.subspan(dealt.size());
    const auto items = static_cast<int>(dealt.size());
    chain->settled = {true, chain->run.scanned, items > 0 ? items : due, items > 0};
    chain->claim = take_claim(dealt);
  }
  for (auto* chain : chains) {
    if (!chain->settled.recorded) chain->settled = recovered(database, chain->run, chain->next, chain->claim);
  }
}

}  // namespace takt
