#pragma once
#include <optional>
#include <span>
#include <string>
#include <tuple>

#include "core/db/query.h"
#include "worker/claim.h"

namespace takt {

/// The parameters of takt.begin_run(), which settling gives it, too.
struct BeginRun {
  std::string tick_id;
  std::int64_t job_id = 0;
  Timestamp due_at{};
  std::string source;
  std::int64_t run_id = 0;
  std::string worker;
  Duration lease{};
  bool exclusive = false;
  int batch_size = 0;
  bool dry_run = false;
  static constexpr auto fields() {
    return std::tuple(&BeginRun::tick_id, &BeginRun::job_id, &BeginRun::due_at, &BeginRun::source, &BeginRun::run_id, &BeginRun::worker,
                      &BeginRun::lease, &BeginRun::exclusive, &BeginRun::batch_size, &BeginRun::dry_run);
  }
};
BeginRun begin_run(const ClaimRequest& request);

/// Named one by one: a column that a newer version's function has beside them is no fault.
#define TAKT_CLAIM_COLUMNS "source, locked, item_id, attempt, key, payload, age_ms, overdue_ms"

/// A row of takt.begin_run(), takt.claimed_by() and takt.go_on(): of a run (`source`, `locked`) or of an item.
struct ClaimRow {
  std::optional<std::string> source;
  bool locked = false;
  std::optional<std::int64_t> item_id;
  int attempt = 0;
  std::string key, payload;
  Duration age{}, overdue{};
  static constexpr auto fields() {
    return std::tuple(Field("source", &ClaimRow::source), Field("locked", &ClaimRow::locked), Field("item_id", &ClaimRow::item_id),
                      Field("attempt", &ClaimRow::attempt), Field("key", &ClaimRow::key), Field("payload", &ClaimRow::payload),
                      Field("age_ms", &ClaimRow::age), Field("overdue_ms", &ClaimRow::overdue));
  }
};

/// The item of a row, which is moved out of it; none of a run's row.
std::optional<ClaimedItem> take_item(ClaimRow& row);

/// The claim that its rows tell, in any row that has these members; their texts are moved out of them.
template <typename Row>
Claim take_claim(std::span<Row> rows) {
  if (rows.empty() || !rows.front().source) return {};
  Claim claim{rows.front().locked ? ClaimOutcome::locked : ClaimOutcome::claimed, *rows.front().source, {}};
  claim.items.reserve(rows.size());
  for (auto& row : rows) {
    if (auto item = take_item(row)) claim.items.push_back(std::move(*item));
  }
  return claim;
}

}  // namespace takt
