#include "dispatcher/retention.h"

#include "core/log.h"

namespace takt {

namespace {

// Served by ticks_created (BRIN). The replay guard: kept longer than a tick may be old.
constexpr Statement kTicks{"prune_ticks", R"sql(
  DELETE FROM takt.ticks WHERE id IN (
    SELECT id FROM takt.ticks
     WHERE created_at < now() - $1 * interval '1 ms' AND finished_at < now() - $1 * interval '1 ms'
     LIMIT $2 FOR UPDATE SKIP LOCKED)
)sql"};

// Served by item_keys_expired.
constexpr Statement kKeys{"prune_keys", R"sql(
  DELETE FROM takt.item_keys WHERE (job_id, key) IN (
    SELECT job_id, key FROM takt.item_keys WHERE expires_at < now() LIMIT $1 FOR UPDATE SKIP LOCKED)
)sql"};

constexpr Statement kDeadLetters{"prune_dead_letters", "SELECT takt.prune_dead_letters($1 * interval '1 ms', $2)"};
// Served by the primary key: ids rise with time, so the oldest are looked at and no others. An index on the time would cost each act.
constexpr Statement kAudit{"prune_audit", R"sql(
  DELETE FROM takt.audit a
   USING (SELECT id FROM takt.audit ORDER BY id LIMIT $2) oldest
   WHERE a.id = oldest.id AND a.at < now() - $1 * interval '1 ms'
)sql"};

/// Into how many partitions history falls, besides the present and the coming one: what is too old goes in such steps.
constexpr int kHistoryPartitions = 7;
constexpr Statement kEnsurePartitions{"ensure_partitions", "SELECT takt.ensure_partitions(width => $1::integer)"};
constexpr Statement kDropPartitions{"drop_partitions", "SELECT takt.drop_old_partitions($1 * interval '1 ms')"};

}  // namespace

Pruned prune_once(Database& database, const RetentionSettings& settings, int batch) {
  Pruned pruned;
  pruned.ticks = static_cast<int>(database.exec_retrying(kTicks, Params::of(settings.ticks, batch)).affected());
  pruned.keys = static_cast<int>(database.exec_retrying(kKeys, Params::of(batch)).affected());
  pruned.dead_letters = static_cast<int>(database.exec_retrying(kDeadLetters, Params::of(settings.dead_letters, batch)).integer(0, 0));
  pruned.audit = prune_audit(database, settings.audit, batch);
  const auto width = std::chrono::ceil<std::chrono::days>(settings.history / kHistoryPartitions);
  database.exec_retrying(kEnsurePartitions, Params::of(static_cast<int>(width.count())));
  pruned.partitions = static_cast<int>(database.exec_retrying(kDropPartitions, Params::of(settings.history)).integer(0, 0));
  if (pruned.anything()) {
    log_info("pruned", {{"ticks", pruned.ticks},
                        {"keys", pruned.keys},
                        {"dead_letters", pruned.dead_letters},
                        {"audit", pruned.audit},
                        {"partitions", pruned.partitions}});
  }
  return pruned;
}

int prune_audit(Database& database, Duration keep, int batch) {
  return static_cast<int>(database.exec_retrying(kAudit, Params::of(keep, batch)).affected());
}

}  // namespace takt
