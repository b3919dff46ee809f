#include "dispatcher/retention.h"

#include <exception>

#include "core/observe/log.h"

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
constexpr int kDropsAtOnce = 30;
constexpr Statement kEnsurePartitions{"ensure_partitions", "SELECT takt.ensure_partitions(width => $1::integer)"};
constexpr Statement kAnalyzeGrown{"analyze_grown", "SELECT takt.analyze_grown()"};
constexpr Statement kDropPartition{"drop_partition", "SELECT child, dropped FROM takt.drop_old_partition($1 * interval '1 ms')"};
constexpr Statement kPartitionsEnd{"partitions_end", R"sql(
  SELECT coalesce((extract(epoch FROM min(until)) * 1000000)::bigint, 0)
    FROM (SELECT max(until) AS until FROM takt.history_partitions GROUP BY parent) p
)sql"};

}  // namespace

Pruned prune_once(Database& database, const RetentionSettings& settings, int batch) {
  Pruned pruned;
  std::exception_ptr first;
  const auto part = [&first](int& removed, const auto& prune) {
    try {
      removed = static_cast<int>(prune());
    } catch (const std::exception&) {
      if (!first) first = std::current_exception();
    }
  };
  part(pruned.ticks, [&] { return database.exec_retrying(kTicks, Params::of(settings.ticks, batch)).affected(); });
  part(pruned.keys, [&] { return database.exec_retrying(kKeys, Params::of(batch)).affected(); });
  part(pruned.dead_letters, [&] { return database.exec_retrying(kDeadLetters, Params::of(settings.dead_letters, batch)).integer(0, 0); });
  part(pruned.audit, [&] { return prune_audit(database, settings.audit, batch); });
  if (pruned.anything()) {
    log_info("pruned", {{"ticks", pruned.ticks}, {"keys", pruned.keys}, {"dead_letters", pruned.dead_letters}, {"audit", pruned.audit}});
  }
  if (first) std::rethrow_exception(first);
  return pruned;
}

int prune_audit(Database& database, Duration keep, int batch) {
  return static_cast<int>(database.exec_retrying(kAudit, Params::of(keep, batch)).affected());
}

Timestamp ensure_partitions(Database& database, Duration history) {
  const auto width = std::chrono::ceil<std::chrono::days>(history / kHistoryPartitions);
  database.exec(kEnsurePartitions, Params::of(static_cast<int>(width.count())));
  return database.exec(kPartitionsEnd).time(0, 0);
}

int analyze_grown(Database& database) { return static_cast<int>(database.exec(kAnalyzeGrown).integer(0, 0)); }

DroppedPartitions drop_old_partitions(Database& database, Duration history) {
  DroppedPartitions dropped;
  while (dropped.count < kDropsAtOnce) {
    const auto rows = database.exec(kDropPartition, Params::of(history));
    if (rows.is_null(0, 0)) break;
    if (!rows.boolean(0, 1)) {
      dropped.in_use = rows.text(0, 0);
      log_info("partition kept", {{"partition", dropped.in_use}, {"why", "transactions use it or its table; tried again in a minute"}});
      break;
    }
    ++dropped.count;
    log_info("partition dropped", {{"partition", rows.text(0, 0)}});
  }
  return dropped;
}

}  // namespace takt
