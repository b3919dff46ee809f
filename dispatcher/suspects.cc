#include "dispatcher/suspects.h"

#include "core/db/query.h"

namespace takt {

namespace {

struct Any {
  bool any = false;
  static constexpr auto fields() { return std::tuple(Field("any", &Any::any)); }
};
struct Woken {
  std::string tick_id, job, queue;
  Timestamp due_at;
  static constexpr auto fields() {
    return std::tuple(Field("id", &Woken::tick_id), Field("job", &Woken::job), Field("queue", &Woken::queue),
                      Field("due_us", &Woken::due_at));
  }
};

constexpr Query<NoRequest, Any> kAny{"suspects_any", "SELECT EXISTS (SELECT 1 FROM takt.items WHERE state = 6) AS any"};

// Reads the suspects through items_due, and unfinished ticks through ticks_unfinished: a handful, and only while there are
// suspects. An item's run_at is when the rescue made it a suspect, whatever it was before, so it is a time that a tick may bear.
// FOR SHARE on the leader's row keeps a successor from being elected between the check and the write.
constexpr Query<Term, Woken> kNext{"suspects_next", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now() FOR SHARE),
  under_way AS MATERIALIZED (
    SELECT t.job_id, CASE WHEN t.lease_until IS NULL THEN t.publish_at > now() - interval '10 s'
                          ELSE t.begun_at > now() - interval '30 s' END AS counts
      FROM takt.ticks t WHERE t.finished_at IS NULL AND t.source = 'alone'),
  next AS (
    SELECT i.id, i.job_id, i.run_at, j.name, j.queue
      FROM takt.items i JOIN takt.jobs j ON j.id = i.job_id
     WHERE i.state = 6 AND i.run_at <= now() AND NOT j.paused AND j.removed_at IS NULL
       AND (j.held_until IS NULL OR j.held_until <= now())
       AND NOT EXISTS (SELECT 1 FROM under_way u WHERE u.counts OR u.job_id = i.job_id)
     ORDER BY i.run_at, i.id LIMIT 1),
  stored AS (
    INSERT INTO takt.ticks (id, job_id, source, due_at)
    SELECT 'alone:' || n.id || '-' || nextval('takt.run_ids'), n.job_id, 'alone', n.run_at FROM next n, in_term
    RETURNING id, due_at)
  SELECT s.id, n.name AS job, n.queue, (extract(epoch FROM s.due_at) * 1000000)::bigint AS due_us FROM stored s, next n
)sql"};

}  // namespace

Suspects wake_next_suspect(Database& database, const Term& term) {
  Suspects suspects;
  suspects.any = query(database, kAny).at(0).any;
  if (!suspects.any) return suspects;
  for (const auto& woken : query_retrying(database, kNext, term)) {
    suspects.tick = TickRow{woken.tick_id, woken.job, woken.queue, "alone", woken.due_at, {}};
  }
  return suspects;
}

}  // namespace takt
