#include "dispatcher/retention.h"

#include <exception>

#include "core/db/query.h"
#include "core/observe/log.h"

namespace takt {

namespace {

/// What is older than `keep`, and at most so many rows of it.
struct OldRows {
  Duration keep{};
  int most = 0;
  static constexpr auto fields() { return std::tuple(&OldRows::keep, &OldRows::most); }
};
struct Most {
  int most = 0;
  static constexpr auto fields() { return std::tuple(&Most::most); }
};

// Served by ticks_publish_at (BRIN). The replay guard: kept longer than a tick may be old.
constexpr Query<OldRows, NoRow> kTicks{"prune_ticks", R"sql(
  DELETE FROM takt.ticks WHERE id IN (
    SELECT id FROM takt.ticks
     WHERE publish_at < now() - $1 * interval '1 ms' AND finished_at < now() - $1 * interval '1 ms'
     LIMIT $2 FOR UPDATE SKIP LOCKED)
)sql"};

// Served by item_keys_expired.
constexpr Query<Most, NoRow> kKeys{"prune_keys", R"sql(
  DELETE FROM takt.item_keys WHERE (job_id, key) IN (
    SELECT job_id, key FROM takt.item_keys WHERE expires_at < now() LIMIT $1 FOR UPDATE SKIP LOCKED)
)sql"};

constexpr Query<OldRows, Count> kDeadLetters{"prune_dead_letters", "SELECT takt.prune_dead_letters($1 * interval '1 ms', $2) AS count"};
// Served by the primary key: ids rise with time, so the oldest are looked at and no others. An index on the time would cost each act.
constexpr Query<OldRows, NoRow> kAudit{"prune_audit", R"sql(
  DELETE FROM takt.audit a
   USING (SELECT id FROM takt.audit ORDER BY id LIMIT $2) oldest
   WHERE a.id = oldest.id AND a.at < now() - $1 * interval '1 ms'
)sql"};

/// Into how many partitions history falls, besides the present and the coming one: what is too old goes in such steps.
constexpr int kHistoryPartitions = 7;
constexpr int kDropsAtOnce = 30;
struct Width {
  int days = 0;
  static constexpr auto fields() { return std::tuple(&Width::days); }
};
struct Keep {
  Duration keep{};
  static constexpr auto fields() { return std::tuple(&Keep::keep); }
};
struct Drop {
  std::optional<std::string> child;
  bool dropped = false;
  static constexpr auto fields() { return std::tuple(Field("child", &Drop::child), Field("dropped", &Drop::dropped)); }
};
struct End {
  Timestamp end;
  static constexpr auto fields() { return std::tuple(Field("end_us", &End::end)); }
};
constexpr Query<Width, Count> kEnsurePartitions{"ensure_partitions", "SELECT takt.ensure_partitions(width => $1::integer) AS count"};
constexpr Query<NoRequest, Count> kAnalyzeGrown{"analyze_grown", "SELECT takt.analyze_grown() AS count"};
constexpr Query<Keep, Drop> kDropPartition{"drop_partition", "SELECT child, dropped FROM takt.drop_old_partition($1 * interval '1 ms')"};
constexpr Query<NoRequest, End> kPartitionsEnd{"partitions_end", R"sql(
  SELECT coalesce((extract(epoch FROM min(until)) * 1000000)::bigint, 0) AS end_us
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
  part(pruned.ticks, [&] { return execute_retrying(database, kTicks, {settings.ticks, batch}); });
  part(pruned.keys, [&] { return execute_retrying(database, kKeys, {batch}); });
  part(pruned.dead_letters, [&] { return query_retrying(database, kDeadLetters, {settings.dead_letters, batch}).at(0).count; });
  part(pruned.audit, [&] { return prune_audit(database, settings.audit, batch); });
  if (pruned.anything()) {
    log_info("pruned", {{"ticks", pruned.ticks}, {"keys", pruned.keys}, {"dead_letters", pruned.dead_letters}, {"audit", pruned.audit}});
  }
  if (first) std::rethrow_exception(first);
  return pruned;
}

int prune_audit(Database& database, Duration keep, int batch) {
  return static_cast<int>(execute_retrying(database, kAudit, {keep, batch}));
}

Timestamp ensure_partitions(Database& database, Duration history) {
  const auto width = std::chrono::ceil<std::chrono::days>(history / kHistoryPartitions);
  query(database, kEnsurePartitions, {static_cast<int>(width.count())});
  return query(database, kPartitionsEnd).at(0).end;
}

int analyze_grown(Database& database) { return static_cast<int>(query(database, kAnalyzeGrown).at(0).count); }

DroppedPartitions drop_old_partitions(Database& database, Duration history) {
  DroppedPartitions dropped;
  while (dropped.count < kDropsAtOnce) {
    const auto oldest = query(database, kDropPartition, {history}).at(0);
    if (!oldest.child) break;
    if (!oldest.dropped) {
      dropped.in_use = *oldest.child;
      log_info("partition kept", {{"partition", dropped.in_use}, {"why", "transactions use it or its table; tried again in a minute"}});
      break;
    }
    ++dropped.count;
    log_info("partition dropped", {{"partition", *oldest.child}});
  }
  return dropped;
}

}  // namespace takt
