#include "dispatcher/schedule_scan.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr int kMaxSchedules = 250;
constexpr int kMaxTicksARound = 5000;
constexpr std::size_t kMaxCached = 10'000;
constexpr std::size_t kMaxFaultBytes = 500;

struct DueRequest {
  Duration within{};
  int most = kMaxSchedules;
  static constexpr auto fields() { return std::tuple(&DueRequest::within, &DueRequest::most); }
};
struct DueRow {
  std::int64_t id = 0, job_id = 0;
  std::string job, queue, name, cron, zone, misfire;
  Duration misfire_after{};
  int misfire_limit = 0;
  Duration misfire_max_age{}, jitter{};
  std::string payload;
  Timestamp next_due, next_fire, now;
  static constexpr auto fields() {
    return std::tuple(
        Field("id", &DueRow::id), Field("job_id", &DueRow::job_id), Field("job", &DueRow::job), Field("queue", &DueRow::queue),
        Field("name", &DueRow::name), Field("cron", &DueRow::cron), Field("time_zone", &DueRow::zone), Field("misfire", &DueRow::misfire),
        Field("misfire_after_ms", &DueRow::misfire_after), Field("misfire_limit", &DueRow::misfire_limit),
        Field("misfire_max_age_ms", &DueRow::misfire_max_age), Field("jitter_ms", &DueRow::jitter), Field("payload", &DueRow::payload),
        Field("next_due_us", &DueRow::next_due), Field("next_fire_us", &DueRow::next_fire), Field("now_us", &DueRow::now));
  }
};
/// Schedules that go on, and the ticks of their slots: a place in each of the first five stands for a schedule, in the others for a tick.
struct Record : Term {
  std::vector<std::int64_t> ids;
  std::vector<std::string> old_dues;
  std::vector<std::optional<std::string>> next_dues, next_fires, last_dues;
  std::vector<std::int64_t> tick_schedules;
  std::vector<std::string> tick_ids;
  std::vector<std::int64_t> tick_jobs;
  std::vector<std::string> tick_dues;
  std::vector<std::optional<std::string>> items;
  std::vector<std::string> tick_fires;
  static constexpr auto fields() {
    return std::tuple_cat(Term::fields(), std::tuple(&Record::ids, &Record::old_dues, &Record::next_dues, &Record::next_fires,
                                                     &Record::last_dues, &Record::tick_schedules, &Record::tick_ids, &Record::tick_jobs,
                                                     &Record::tick_dues, &Record::items, &Record::tick_fires));
  }
};
struct Stored {
  std::string id;
  static constexpr auto fields() { return std::tuple(Field("id", &Stored::id)); }
};
struct FaultyRequest : Term {
  std::vector<std::int64_t> ids;
  std::vector<std::string> old_dues, faults;
  static constexpr auto fields() {
    return std::tuple_cat(Term::fields(), std::tuple(&FaultyRequest::ids, &FaultyRequest::old_dues, &FaultyRequest::faults));
  }
};
struct UnsentRow {
  std::int64_t schedule_id = 0;
  std::string tick_id, job, name;
  Duration misfire_after{}, jitter{};
  Timestamp due_at, publish_at, now;
  std::string queue, items;
  bool left = false;
  static constexpr auto fields() {
    return std::tuple(Field("schedule_id", &UnsentRow::schedule_id), Field("id", &UnsentRow::tick_id), Field("job", &UnsentRow::job),
                      Field("name", &UnsentRow::name), Field("misfire_after_ms", &UnsentRow::misfire_after),
                      Field("jitter_ms", &UnsentRow::jitter), Field("due_us", &UnsentRow::due_at),
                      Field("publish_us", &UnsentRow::publish_at), Field("now_us", &UnsentRow::now), Field("queue", &UnsentRow::queue),
                      Field("items", &UnsentRow::items), Field("left", &UnsentRow::left));
  }
};
struct TakeBack : Term {
  std::vector<std::int64_t> schedules;
  std::vector<std::string> ids, dues;
  static constexpr auto fields() {
    return std::tuple_cat(Term::fields(), std::tuple(&TakeBack::schedules, &TakeBack::ids, &TakeBack::dues));
  }
};

// Served by schedules_fire; reads only what is due or nearly so.
constexpr Query<DueRequest, DueRow> kDue{"schedules_due", R"sql(
  SELECT s.id, s.job_id, j.name AS job, j.queue, s.name, s.cron, s.time_zone, s.misfire,
         (extract(epoch FROM s.misfire_after) * 1000)::bigint AS misfire_after_ms, s.misfire_limit,
         (extract(epoch FROM s.misfire_max_age) * 1000)::bigint AS misfire_max_age_ms,
         (extract(epoch FROM s.jitter) * 1000)::bigint AS jitter_ms, s.payload::text AS payload,
         (extract(epoch FROM s.next_due) * 1000000)::bigint AS next_due_us,
         (extract(epoch FROM s.next_fire) * 1000000)::bigint AS next_fire_us, (extract(epoch FROM now()) * 1000000)::bigint AS now_us
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE s.next_fire <= now() + $1 * interval '1 ms' AND NOT s.paused AND NOT s.job_paused
   ORDER BY s.next_fire
   LIMIT $2
)sql"};

// FOR SHARE on the leader's row keeps a successor from being elected between the check and the writes. A slot that is there
// already counts as new where it was stopped before it was sent: its schedule was paused and goes on, or was changed.
constexpr Query<Record, Stored> kRecord{"schedules_record", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now() FOR SHARE),
  advanced AS (
    UPDATE takt.schedules s
       SET next_due = p.next_due, next_fire = p.next_fire, last_due = coalesce(p.last_due, s.last_due), fault = NULL
      FROM unnest($3::integer[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])
             AS p(id, old_due, next_due, next_fire, last_due), in_term
     WHERE s.id = p.id AND s.next_due = p.old_due AND NOT s.paused AND NOT s.job_paused
    RETURNING s.id)
  INSERT INTO takt.ticks AS known (id, job_id, source, due_at, items, publish_at)
  SELECT t.id, t.job_id, 'schedule', t.due_at, t.items::jsonb, greatest(t.fire_at, now())
    FROM unnest($8::integer[], $9::text[], $10::integer[], $11::timestamptz[], $12::text[], $13::timestamptz[])
           AS t(schedule_id, id, job_id, due_at, items, fire_at)
   WHERE t.schedule_id IN (SELECT id FROM advanced)
  ON CONFLICT (id) DO UPDATE SET finished_at = NULL, items = excluded.items, publish_at = excluded.publish_at
   WHERE known.finished_at IS NOT NULL AND known.published_at IS NULL AND known.begun_at IS NULL
  RETURNING id
)sql"};

// It leaves the head of schedules_fire to those that can tick.
constexpr Query<FaultyRequest, NoRow> kFaulty{"schedules_faulty", R"sql(
  UPDATE takt.schedules s SET next_fire = now() + interval '1 hour', fault = p.fault
    FROM unnest($3::integer[], $4::timestamptz[], $5::text[]) AS p(id, old_due, fault)
   WHERE s.id = p.id AND s.next_due = p.old_due
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
)sql"};

// Served by ticks_unpublished. A tick names its schedule by its id only: job, "/", schedule, "@", slot; no name holds an "@".
// The items of the latest 64 MiB; `left` are those of the others, which the sweep sends.
constexpr Query<NoRequest, UnsentRow> kUnsent{"schedules_unsent", R"sql(
  SELECT s.id AS schedule_id, t.id, j.name AS job, s.name, (extract(epoch FROM s.misfire_after) * 1000)::bigint AS misfire_after_ms,
         (extract(epoch FROM s.jitter) * 1000)::bigint AS jitter_ms, (extract(epoch FROM t.due_at) * 1000000)::bigint AS due_us,
         (extract(epoch FROM t.publish_at) * 1000000)::bigint AS publish_us, (extract(epoch FROM now()) * 1000000)::bigint AS now_us,
         j.queue, CASE WHEN t.bytes <= 67108864 THEN t.items::text END AS items, t.bytes > 67108864 AS left
    FROM (SELECT *, sum(coalesce(pg_column_size(items), 0)) OVER (ORDER BY publish_at DESC, id) AS bytes
            FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL AND begun_at IS NULL AND source = 'schedule'
           ORDER BY publish_at DESC, id LIMIT 20000) t
    JOIN takt.jobs j ON j.id = t.job_id
    JOIN takt.schedules s ON s.job_id = t.job_id AND s.name = substr(split_part(t.id, '@', 1), length(j.name) + 2)
)sql"};

constexpr Query<TakeBack, Count> kTakeBack{"schedules_take_back", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now() FOR SHARE),
  gone AS (
    DELETE FROM takt.ticks t USING in_term
     WHERE t.id = ANY ($4::text[]) AND t.published_at IS NULL AND t.finished_at IS NULL AND t.begun_at IS NULL
    RETURNING t.id),
  back AS (
    SELECT p.schedule_id, min(p.due_at) AS due_at
      FROM unnest($3::integer[], $4::text[], $5::timestamptz[]) AS p(schedule_id, id, due_at)
     WHERE p.id IN (SELECT id FROM gone) GROUP BY 1),
  moved AS (
    UPDATE takt.schedules s SET next_due = least(s.next_due, b.due_at), next_fire = least(s.next_fire, b.due_at)
      FROM back b WHERE s.id = b.schedule_id)
  SELECT count(*) AS count FROM gone
)sql"};

std::optional<std::string> time_text(const std::optional<Timestamp>& time) {
  if (!time) return std::nullopt;
  return format_rfc3339(*time);
}

/// How long until a slot that fires at `fire` can be stored.
Duration until_stored(Timestamp fire, Timestamp now) {
  return std::max(Duration(0), std::chrono::ceil<Duration>(fire - now - ScheduleScan::kAhead));
}

/// The one inline item of a schedule's tick, keyed by the tick.
std::string inline_item(const std::string& payload, const std::string& key) {
  if (payload.empty()) return "";
  return "[{\"payload\":" + payload + ",\"key\":" + nlohmann::json(key).dump() + "}]";
}

}  // namespace

struct ScheduleScan::Faults {
  std::vector<std::int64_t> ids;
  std::vector<std::string> dues, texts;
};

struct ScheduleScan::DueSchedule {
  std::int64_t id, job_id;
  std::string job, queue, name, cron, zone, payload;
  SlotPolicy policy;
  Timestamp next_due, now;
  Timestamp as_of;  // slots up to then tick: now, or the slot's own time where it is stored ahead
};

const Cron& ScheduleScan::parsed(const std::string& cron, const std::string& zone) {
  const std::string key = zone + "\n" + cron;
  if (const auto found = cache_.find(key); found != cache_.end()) return found->second;
  auto result = Cron::parse(cron, zone);
  if (const auto* error = std::get_if<CronError>(&result)) {
    throw std::runtime_error("\"" + cron + "\" in " + zone + " is not understood: " + error->message);
  }
  if (cache_.size() >= kMaxCached) cache_.clear();
  return cache_.emplace(key, std::get<Cron>(std::move(result))).first->second;
}

std::optional<SlotPlan> ScheduleScan::plan(const DueSchedule& schedule, Faults& faults) {
  try {
    return plan_slots(parsed(schedule.cron, schedule.zone), schedule.policy, schedule.job + "/" + schedule.name, schedule.next_due,
                      schedule.as_of);
  } catch (const std::exception& error) {
    log_error("schedule set aside",
              {{"job", schedule.job}, {"schedule", schedule.name}, {"error", error.what()}, {"then", "mend it and run takt apply"}});
    faults.ids.push_back(schedule.id);
    faults.dues.push_back(format_rfc3339(schedule.next_due));
    faults.texts.push_back(printable(error.what(), kMaxFaultBytes));
    return std::nullopt;
  }
}

std::vector<ScheduleScan::DueSchedule> ScheduleScan::read_due(Duration lookahead, Result& result) {
  std::vector<DueSchedule> due;
  for (auto& row : query(database_, kDue, {kAhead + lookahead})) {
    if (row.next_fire > row.now + kAhead) {
      result.next_in = until_stored(row.next_fire, row.now);
      break;
    }
    const SlotPolicy policy{parse_misfire(row.misfire).value_or(MisfirePolicy::once), row.misfire_after, row.misfire_limit,
                            row.misfire_max_age, row.jitter};
    const Timestamp as_of = std::max(row.now, row.next_fire);
    due.push_back({row.id, row.job_id, std::move(row.job), std::move(row.queue), std::move(row.name), std::move(row.cron),
                   std::move(row.zone), std::move(row.payload), policy, row.next_due, row.now, as_of});
  }
  result.more = due.size() == kMaxSchedules;
  return due;
}

ScheduleScan::Inherited ScheduleScan::inherit(const Term& term, Duration sweep_after) {
  Inherited inherited;
  TakeBack back{term, {}, {}, {}};
  for (auto& row : query(database_, kUnsent)) {
    SlotPolicy policy;
    policy.misfire_after = row.misfire_after;
    policy.jitter = row.jitter;
    const Timestamp fire = row.due_at + slot_jitter(row.job + "/" + row.name, row.due_at, policy.jitter);
    if (row.publish_at > fire) continue;  // stored when it was late already
    if (is_missed(policy, row.due_at, row.now)) {
      back.schedules.push_back(row.schedule_id);
      back.ids.push_back(std::move(row.tick_id));
      back.dues.push_back(format_rfc3339(row.due_at));
    } else if (fire > row.now - sweep_after && !row.left) {
      inherited.ticks.push_back(
          {std::move(row.tick_id), std::move(row.job), std::move(row.queue), "schedule", row.due_at, std::move(row.items), fire});
    }
  }
  if (!back.ids.empty()) inherited.taken_back = static_cast<int>(query_retrying(database_, kTakeBack, back).at(0).count);
  return inherited;
}

ScheduleScan::Result ScheduleScan::run_once(const Term& term, Duration lookahead) {
  Result result;
  const auto due = read_due(lookahead, result);
  if (due.empty()) return result;

  Record record{term, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  std::unordered_map<std::string, TickRow> rows_by_id;
  Faults faults;
  for (const auto& schedule : due) {
    const auto planned = plan(schedule, faults);
    if (!planned) continue;
    const SlotPlan& plan = *planned;
    const std::string name = schedule.job + "/" + schedule.name;
    record.ids.push_back(schedule.id);
    record.old_dues.push_back(format_rfc3339(schedule.next_due));
    record.next_dues.push_back(time_text(plan.next_due));
    record.next_fires.push_back(time_text(plan.next_fire));
    record.last_dues.push_back(time_text(plan.last));
    if (plan.next_fire) {
      const auto again = until_stored(*plan.next_fire, schedule.now);
      if (again < lookahead) result.next_in = std::min(result.next_in.value_or(again), again);
    }
    if (plan.missed > 0) {
      metrics_.slots_missed(schedule.job, to_string(schedule.policy.misfire), plan.missed);
      log_warn(
          "slots missed",
          {{"job", schedule.job}, {"schedule", schedule.name}, {"count", plan.missed}, {"policy", to_string(schedule.policy.misfire)}});
    }
    for (const auto slot : plan.ticks) {
      TickRow row{slot_tick_id(schedule.job, schedule.name, slot),       schedule.job, schedule.queue, "schedule", slot, {},
                  slot + slot_jitter(name, slot, schedule.policy.jitter)};
      row.items = inline_item(schedule.payload, row.id);
      record.tick_schedules.push_back(schedule.id);
      record.tick_ids.push_back(row.id);
      record.tick_jobs.push_back(schedule.job_id);
      record.tick_dues.push_back(format_rfc3339(slot));
      record.tick_fires.push_back(format_rfc3339(row.fire_at));
      record.items.push_back(row.items.empty() ? std::nullopt : std::optional(row.items));
      rows_by_id.emplace(row.id, std::move(row));
    }
    if (record.tick_ids.size() >= kMaxTicksARound) {
      result.more = true;
      break;
    }
  }
  if (!faults.ids.empty()) execute_retrying(database_, kFaulty, {term, faults.ids, faults.dues, faults.texts});
  for (const auto& stored : query_retrying(database_, kRecord, record)) result.ticks.push_back(std::move(rows_by_id.at(stored.id)));
  return result;
}

}  // namespace takt
