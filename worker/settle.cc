#include "worker/settle.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

namespace takt {

namespace {

constexpr std::size_t kMaxRunErrors = 10;
/// A settling that waited for a lock in vain is not tried again here: between two tries the caller renews the run's lease.
constexpr int kOneTry = 1;

// The run's row by its key; the tick's row is the fence. See takt.end_run.
#define TAKT_END_RUN                                                                                                           \
  "takt.end_run($1, $2, $3, $4, $5, $6, $7, $8::integer[], $9, $10, $11::jsonb, $12::jsonb, $13::real[], $14::bigint[], $15, " \
  "$16::bigint[], $17::smallint[], $18::text[], $19::bigint[], $20::smallint[], $21::text[], $22::text[], $23::text[], $24, $25)"
constexpr Statement kEnd{"end_run", "SELECT * FROM " TAKT_END_RUN};

// Ends one run and begins the next of the same job: one round trip, one commit. begin_run() is given no tick, and does
// nothing, where no continuation is to follow.
constexpr Statement kEndAndBegin{"end_run_begin_next",
                                 "WITH ended AS MATERIALIZED (SELECT * FROM " TAKT_END_RUN
                                 ") SELECT e.recorded, e.remaining, e.continues, b.* FROM ended e LEFT JOIN LATERAL"
                                 " takt.begin_run(CASE WHEN e.continues THEN $26 END, $27, $28, $29, $30, $31, $32, $33, $34, $35,"
                                 " e.from_priority, e.from_run_at, CASE WHEN $36 THEN e.from_id END) b ON true"};
constexpr std::size_t kEndColumns = 3;

// The same for runs that leave nothing behind, in chains: see takt.go_on.
constexpr Statement kGoOn{"go_on", "SELECT * FROM takt.go_on($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"};
constexpr std::size_t kGoOnColumns = 2;  // the number of a run that was still ours; what is due all the same
constexpr std::size_t kGoOnItem = kGoOnColumns + 2;

// By the tick's row, which names the run as long as it is ours; then served by failed_attempts_item.
constexpr Statement kLostAttempts{"lost_attempts", R"sql(
  SELECT h.id, count(*)
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

/// The items that do not stay in their run's row, as parallel arrays. Most runs have none.
struct Leaving {
  std::vector<std::int64_t> ids, states, delays, unspent;
  std::vector<std::string> classes, reasons, errors, dead_reasons;
};

Leaving leaving_items(const RunRecord& run) {
  Leaving leaving;
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto& settlement = run.settlements[i];
    if (settlement.state == ItemState::done) continue;
    leaving.ids.push_back(run.items[i].id);
    leaving.states.push_back(static_cast<std::int64_t>(settlement.state));
    leaving.classes.emplace_back(to_string(run.results[i].item_class));
    leaving.delays.push_back(settlement.delay.count());
    leaving.unspent.push_back(settlement.spent ? 0 : 1);
    leaving.reasons.push_back(run.results[i].reason);
    leaving.errors.push_back(run.results[i].error);
    leaving.dead_reasons.push_back(settlement.reason);
  }
  return leaving;
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

Params end_params(const RunRecord& run, const std::optional<std::string>& next_tick) {
  const auto staying = staying_items(run);
  const auto counts = count(run);
  const auto& job = run.job->definition;
  auto params = Params::of(run.tick_id, run.run_id, run.job->id, job.name, job.dedupe_window, job.concurrency == 1, to_string(run.status),
                           std::vector<std::int64_t>{run.scanned, counts.done, counts.noop, counts.skipped, counts.blocked, counts.error,
                                                     counts.dead, counts.handed_back},
                           run.oldest_age_s, run.duration_ms, first_errors(run), reported(run), staying.durations);
  params.add(staying.noops).add(staying.has_keys);
  const auto leaving = leaving_items(run);
  if (leaving.ids.empty()) {
    for (int i = 0; i < 8; ++i) params.add(std::nullopt);
  } else {
    params.add(leaving.ids).add(leaving.states).add(leaving.classes).add(leaving.delays).add(leaving.unspent);
    params.add(leaving.reasons).add(leaving.errors).add(leaving.dead_reasons);
  }
  return params.add(run.drains).add(next_tick);
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

Rows go_on(Database& database, const std::vector<Continuation*>& chains) {
  std::vector<std::string> ticks;
  std::vector<std::int64_t> runs, next_runs;
  std::vector<double> oldest, took;
  std::vector<std::optional<std::string>> sums, durations, noops;
  bool has_keys = false;
  bool goes_on = true;
  for (const auto* chain : chains) {
    const auto& run = chain->run;
    const auto staying = staying_items(run);
    ticks.push_back(run.tick_id);
    runs.push_back(run.run_id);
    next_runs.push_back(chain->next.run_id);
    oldest.push_back(run.oldest_age_s);
    took.push_back(run.duration_ms);
    sums.push_back(reported(run));
    durations.push_back(literal(staying.durations));
    noops.push_back(literal(staying.noops));
    has_keys = has_keys || staying.has_keys;
    goes_on = goes_on && chain->next.goes_on;
  }
  const auto& ended = *chains.front()->run.job;
  const auto& next = chains.front()->next;
  return database.exec_retrying(
      kGoOn,
      Params::of(ticks, runs, next_runs, oldest, took, sums, durations, noops, has_keys, ended.id, ended.definition.dedupe_window,
                 next.worker, next.job.definition.lease, next.batch_size, goes_on),
      kOneTry);
}

Rows end_and_begin(Database& database, const RunRecord& run, const ClaimRequest& next) {
  auto params = end_params(run, std::nullopt);
  params.append(claim_params(next)).add(next.goes_on);
  return database.exec_retrying(kEndAndBegin, params, kOneTry);
}

Settled settled_of(const RunRecord& run, const Rows& rows) {
  const bool recorded = !rows.empty() && rows.boolean(0, 0);
  if (!recorded) return {};
  return {recorded, run.scanned, static_cast<int>(rows.integer(0, 1)), rows.boolean(0, 2)};
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
  const auto rows = database.exec_retrying(kLostAttempts, Params::of(run.tick_id, run.run_id, dying), kOneTry);
  std::map<std::int64_t, int> lost;
  for (std::size_t row = 0; row < rows.size(); ++row) lost[rows.integer(row, 0)] = static_cast<int>(rows.integer(row, 1));
  const Duration took(static_cast<std::int64_t>(run.duration_ms));
  for (std::size_t i = 0; i < run.items.size(); ++i) {
    const auto found = lost.find(run.items[i].id);
    if (found == lost.end()) continue;
    run.settlements[i] = settle_item(run.items[i], run.results[i], run.job->definition, run.items[i].age + took, uniform, found->second);
  }
}

Settled settle_run(Database& database, const RunRecord& run) {
  const auto rows =
      database.exec_retrying(kEnd, end_params(run, run.drains ? std::optional(continuation_id(run.run_id)) : std::nullopt), kOneTry);
  return settled_of(run, rows);
}

Settled settle_and_claim(Database& database, const RunRecord& run, const ClaimRequest& next, Claim& claim) {
  if (goes_on_in_place(run, next)) {
    Continuation only{run, next, claim, {}};
    settle_and_claim(database, {&only});
    return only.settled;
  }
  Rows rows(nullptr);
  try {
    rows = end_and_begin(database, run, next);
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    return settle_alone(database, run);
  }
  const auto settled = settled_of(run, rows);
  if (!settled.recorded) return recovered(database, run, next, claim);
  claim = read_claim(rows, kEndColumns);
  return settled;
}

bool goes_on_in_place(const RunRecord& run, const ClaimRequest& next) { return next.tick_id == run.tick_id; }

void settle_and_claim(Database& database, const std::vector<Continuation*>& chains) {
  Rows rows(nullptr);
  try {
    rows = go_on(database, chains);
  } catch (const DatabaseError& error) {
    if (!too_large_together(error)) throw;
    for (auto* chain : chains) chain->settled = settle_alone(database, chain->run);
    return;
  }
  std::size_t row = 0;
  std::size_t end = rows.size();
  for (auto* chain : chains) chain->settled = {};
  std::vector<Continuation*> recorded;  // in the order in which items are dealt to them
  for (; row < end && !rows.is_null(row, 0); ++row) recorded.push_back(chains[static_cast<std::size_t>(rows.integer(row, 0)) - 1]);
  const bool some_ended = end > row && rows.is_null(end - 1, kGoOnItem);
  const int due = some_ended ? static_cast<int>(rows.integer(--end, 1)) : 0;
  for (auto* chain : recorded) {
    const auto behind = std::min(end, row + static_cast<std::size_t>(chain->next.batch_size));
    const auto items = static_cast<int>(behind - row);
    chain->settled = {true, chain->run.scanned, items > 0 ? items : due, items > 0};
    chain->claim = read_claim(rows, kGoOnColumns, row, behind);
    row = behind;
  }
  for (auto* chain : chains) {
    if (!chain->settled.recorded) chain->settled = recovered(database, chain->run, chain->next, chain->claim);
  }
}

}  // namespace takt
