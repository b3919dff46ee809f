#include "core/config/removal.h"

#include "core/db/query.h"

namespace takt {

namespace {

struct Most {
  std::int64_t most = 0;
  static constexpr auto fields() { return std::tuple(&Most::most); }
};
struct MostOfId : Most {
  std::int64_t job_id = 0;
  static constexpr auto fields() { return std::tuple_cat(Most::fields(), std::tuple(&MostOfId::job_id)); }
};
struct MostOfName : Most {
  std::string job;
  static constexpr auto fields() { return std::tuple_cat(Most::fields(), std::tuple(&MostOfName::job)); }
};
struct BacklogRow {
  std::int64_t job_id = 0;
  std::string job;
  std::int64_t waiting = 0, blocked = 0, running = 0, ticks = 0;
  static constexpr auto fields() {
    return std::tuple(Field("id", &BacklogRow::job_id), Field("name", &BacklogRow::job), Field("waiting", &BacklogRow::waiting),
                      Field("blocked", &BacklogRow::blocked), Field("running", &BacklogRow::running), Field("ticks", &BacklogRow::ticks));
  }
};
struct JobId {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(&JobId::id); }
};
struct JobVersion : JobId {
  std::int64_t version = 0;
  static constexpr auto fields() { return std::tuple_cat(JobId::fields(), std::tuple(&JobVersion::version)); }
};
struct Version {
  std::int64_t version = 0;
  static constexpr auto fields() { return std::tuple(Field("version", &Version::version)); }
};
struct Youngest {
  std::int64_t id = 0;
  static constexpr auto fields() { return std::tuple(Field("id", &Youngest::id)); }
};
/// A place in items_due: where a batch ended.
struct Place {
  int priority = -32768;
  std::string run_at = "-infinity";
  std::int64_t id = -1;
};
struct Batch {
  std::int64_t job_id = 0;
  int state = 0;
  int priority = 0;
  std::string run_at;
  std::int64_t id = 0;
  int items = 0;
  std::int64_t youngest = 0;
  static constexpr auto fields() {
    return std::tuple(&Batch::job_id, &Batch::state, &Batch::priority, &Batch::run_at, &Batch::id, &Batch::items, &Batch::youngest);
  }
};
/// How many it cancelled, and where it ended.
struct BatchRow : Place {
  std::int64_t count = 0;
  static constexpr auto fields() {
    return std::tuple(Field("count", &BatchRow::count), Field("priority", &Place::priority), Field("run_at", &Place::run_at),
                      Field("id", &Place::id));
  }
};
struct Cancel {
  std::string who, origin, subject;
  std::int64_t items = 0;
  static constexpr auto fields() { return std::tuple(&Cancel::who, &Cancel::origin, &Cancel::subject, &Cancel::items); }
};

// Served by items_due (a probe a state) and ticks_unfinished; what a run claimed is in its row.
#define TAKT_BACKLOG                                                                                                       \
  "SELECT j.id, j.name, w.waiting + u.carried AS waiting, w.blocked, u.running, u.ticks FROM takt.jobs j"                  \
  " CROSS JOIN LATERAL ("                                                                                                  \
  "   SELECT count(*) AS waiting, count(*) FILTER (WHERE x.state = 5) AS blocked"                                          \
  "     FROM (SELECT i.state FROM takt.items i WHERE i.job_id = j.id AND i.state IN (0, 5, 6) LIMIT $1::bigint + 1) x) w"  \
  " CROSS JOIN LATERAL ("                                                                                                  \
  "   SELECT count(*) AS ticks, coalesce(sum(cardinality(r.item_ids)), 0) AS running,"                                     \
  "          coalesce(sum(jsonb_array_length(t.items)) FILTER (WHERE t.lease_until IS NULL AND t.dry_run IS NOT TRUE), 0)" \
  "            AS carried"                                                                                                 \
  "     FROM takt.ticks t LEFT JOIN takt.runs r ON r.id = t.run_id AND r.started_at = t.begun_at AND r.status = 'running'" \
  "    WHERE t.job_id = j.id AND t.finished_at IS NULL) u"

constexpr Query<MostOfId, BacklogRow> kBacklog{"job_backlog", TAKT_BACKLOG " WHERE j.id = $2"};
constexpr Query<MostOfName, BacklogRow> kBacklogByName{"job_backlog_by_name", TAKT_BACKLOG " WHERE j.name = $2"};
constexpr Query<Most, BacklogRow> kRemoved{
    "removed_with_items", TAKT_BACKLOG " WHERE j.removed_at IS NOT NULL AND w.waiting + u.carried + u.running > 0 ORDER BY j.name"};

// A worker that takes one of these ticks at this moment holds its row: this waits, and finds it begun.
constexpr Query<JobId, Count> kEndTicks{"end_unbegun_ticks", R"sql(
  WITH unbegun AS MATERIALIZED (
    SELECT t.id, CASE WHEN t.dry_run IS NOT TRUE THEN t.items END AS items
      FROM takt.ticks t WHERE t.job_id = $1 AND t.finished_at IS NULL AND t.lease_until IS NULL FOR UPDATE),
  ended AS (
    UPDATE takt.ticks t SET finished_at = now(), items = NULL FROM unbegun u WHERE t.id = u.id),
  carried AS (
    SELECT array_agg(coalesce(o.item->'payload', '{}') ORDER BY u.id, o.n) AS payloads,
           array_agg(o.item->>'key' ORDER BY u.id, o.n) AS keys,
           array_agg((o.item->>'runAt')::timestamptz ORDER BY u.id, o.n) AS run_ats,
           array_agg((o.item->>'priority')::integer ORDER BY u.id, o.n) AS priorities
      FROM unbegun u CROSS JOIN LATERAL jsonb_array_elements(u.items) WITH ORDINALITY AS o(item, n))
  SELECT count(*) AS count FROM carried c
   CROSS JOIN LATERAL takt.store_items($1, c.payloads, c.keys, c.run_ats, c.priorities) s WHERE c.payloads IS NOT NULL
)sql"};

// Served by items_due; $3 to $5: where the batch before ended, so that none walks over what that one deleted; $7: the youngest
// item there was when it began, so that it ends however much is enqueued meanwhile. What is locked is being claimed.
constexpr Query<Batch, BatchRow> kCancelWaiting{"cancel_waiting", R"sql(
  WITH batch AS MATERIALIZED (
    SELECT i.ctid AS place, i.priority, i.run_at, i.id FROM takt.items i
     WHERE i.job_id = $1 AND i.state = $2 AND (i.priority, i.run_at, i.id) > ($3::smallint, $4::timestamptz, $5::bigint)
       AND i.id <= $7
     ORDER BY i.priority, i.run_at, i.id LIMIT $6 FOR UPDATE SKIP LOCKED),
  gone AS (
    DELETE FROM takt.items i WHERE i.ctid = ANY (ARRAY(SELECT place FROM batch)) RETURNING i.*),
  history AS (
    INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_at, enqueued_at, key, payload)
    SELECT id, now(), job_id, 4, 'cancelled', priority, attempt, replay, run_at, enqueued_at, key, payload FROM gone),
  keys AS (
    DELETE FROM takt.item_keys k USING gone g WHERE g.key IS NOT NULL AND k.job_id = g.job_id AND k.key = g.key AND k.item_id = g.id)
  SELECT (SELECT count(*) FROM gone) AS count, s.priority, s.run_at::text AS run_at, s.id FROM batch s ORDER BY s.priority DESC, s.run_at DESC, s.id DESC LIMIT 1
)sql"};

Backlog backlog_in(const BacklogRow& row) { return {row.job_id, row.job, row.waiting, row.blocked, row.running, row.ticks}; }

std::string counted(std::int64_t number) {
  return number > Backlog::kMostCounted ? "more than " + std::to_string(Backlog::kMostCounted) : std::to_string(number);
}

constexpr Query<Cancel, NoRow> kCancelled{"cancel_noted",
                                          "INSERT INTO takt.audit (who, origin, action, subject, detail)"
                                          " VALUES ($1, $2, 'cancel', $3, jsonb_build_object('items', $4::bigint))"};

constexpr Query<NoRequest, Youngest> kYoungest{"youngest_item", "SELECT last_value AS id FROM takt.items_id_seq"};
constexpr Query<JobVersion, Version> kAsRemoved{"job_as_removed", "SELECT version FROM takt.jobs WHERE id = $1 AND version = $2 FOR SHARE"};
constexpr Query<JobId, Version> kRemoval{"job_removal", "SELECT version FROM takt.jobs WHERE id = $1 AND removed_at IS NOT NULL"};

/// Goes through what waits of one job in one state, a transaction a batch.
class Cancelling {
 public:
  Cancelling(Database& database, const Backlog& of, const Actor& by, std::optional<std::int64_t> removal, int batch)
      : database_(database), of_(of), by_(by), removal_(removal), batch_(batch), youngest_(query(database, kYoungest).at(0).id) {}

  /// Adds to `cancelled` what was committed. False if the job was defined again.
  bool in_state(int state, std::int64_t& cancelled) {
    Place place;
    while (true) {
      std::optional<Place> ended;
      std::int64_t count = 0;
      bool stays = true;
      database_.transaction([&](Session& on) {
        count = 0;
        stays = !removal_ || is_as_removed(on);
        ended = stays ? one_batch(on, state, place, count) : std::nullopt;
      });
      cancelled += count;
      if (!ended) return stays;
      place = *std::move(ended);
    }
  }

 private:
  /// Nobody defines it anew before the batch has ended.
  bool is_as_removed(Session& on) { return !query(on, kAsRemoved, {{of_.job_id}, *removal_}).empty(); }

  std::optional<Place> one_batch(Session& on, int state, const Place& after, std::int64_t& count) {
    const auto rows = query(on, kCancelWaiting, {of_.job_id, state, after.priority, after.run_at, after.id, batch_, youngest_});
    if (rows.empty()) return std::nullopt;
    count = rows.front().count;
    query(on, kCancelled, {by_.who, by_.origin, "job " + of_.job, count});
    return rows.front();
  }

  Database& database_;
  const Backlog& of_;
  const Actor& by_;
  const std::optional<std::int64_t> removal_;
  const int batch_;
  const std::int64_t youngest_;
};

}  // namespace

std::string Backlog::text() const {
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (waiting > 0) {
    add(counted(waiting) + (waiting == 1 ? " item waiting" : " items waiting") +
        (blocked > 0 ? " (" + counted(blocked) + " blocked)" : ""));
  }
  if (running > 0) add(std::to_string(running) + (waiting > 0 ? "" : running == 1 ? " item" : " items") + " running");
  if (ticks > 0) add(std::to_string(ticks) + (ticks == 1 ? " tick" : " ticks") + " under way");
  return text;
}

Backlog backlog_of(Session& on, std::int64_t job_id) { return backlog_in(query(on, kBacklog, {{Backlog::kMostCounted}, job_id}).at(0)); }

std::optional<Backlog> backlog_of(Database& database, const std::string& job) {
  const auto rows = query(database, kBacklogByName, {{Backlog::kMostCounted}, job});
  if (rows.empty()) return std::nullopt;
  return backlog_in(rows.front());
}

std::optional<std::int64_t> removal_of(Database& database, std::int64_t job_id) {
  const auto rows = query(database, kRemoval, {job_id});
  if (rows.empty()) return std::nullopt;
  return rows.front().version;
}

std::vector<Backlog> removed_with_items(Database& database) {
  std::vector<Backlog> removed;
  for (const auto& row : query(database, kRemoved, {Backlog::kMostCounted})) removed.push_back(backlog_in(row));
  return removed;
}

void end_unbegun_ticks(Session& on, std::int64_t job_id) { query(on, kEndTicks, {job_id}); }

Cancelled cancel_waiting(Database& database, const Backlog& of, const Actor& by, std::optional<std::int64_t> removal, int batch) {
  Cancelled cancelled;
  try {
    Cancelling cancelling(database, of, by, removal, batch);
    for (const int state : {0, 5, 6}) {
      if (cancelling.in_state(state, cancelled.items)) continue;
      cancelled.stopped_by = "the job was applied again meanwhile";
      cancelled.job_is_back = true;
      break;
    }
  } catch (const DatabaseError& error) {
    cancelled.stopped_by = error.what();
  } catch (const DatabaseUnavailable& error) {
    cancelled.stopped_by = error.what();
  }
  return cancelled;
}

}  // namespace takt
