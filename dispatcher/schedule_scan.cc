#include "dispatcher/schedule_scan.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/observe/log.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr int kMaxSchedules = 250;
constexpr int kMaxTicksARound = 5000;
constexpr std::size_t kMaxCached = 10'000;
constexpr std::size_t kMaxFaultBytes = 500;

// Served by schedules_fire; reads only what is due or nearly so.
constexpr Statement kDue{"schedules_due", R"sql(
  SELECT s.id, s.job_id, j.name, j.queue, s.name, s.cron, s.time_zone, s.misfire,
         (extract(epoch FROM s.misfire_after) * 1000)::bigint, s.misfire_limit,
         (extract(epoch FROM s.misfire_max_age) * 1000)::bigint, (extract(epoch FROM s.jitter) * 1000)::bigint,
         s.payload::text, (extract(epoch FROM s.next_due) * 1000000)::bigint,
         (extract(epoch FROM s.next_fire) * 1000000)::bigint, (extract(epoch FROM now()) * 1000000)::bigint
    FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
   WHERE s.next_fire <= now() + $1 * interval '1 ms' AND NOT s.paused AND NOT s.job_paused
   ORDER BY s.next_fire
   LIMIT $2
)sql"};

// FOR SHARE on the leader's row keeps a successor from being elected between the check and the writes. A slot that is there
// already counts as new where it was stopped before it was sent: its schedule was paused and goes on, or was changed.
constexpr Statement kRecord{"schedules_record", R"sql(
  WITH in_term AS (
    SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now() FOR SHARE),
  advanced AS (
    UPDATE takt.schedules s
       SET next_due = p.next_due, next_fire = p.next_fire, last_due = coalesce(p.last_due, s.last_due), fault = NULL
      FROM unnest($3::integer[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])
             AS p(id, old_due, next_due, next_fire, last_due), in_term
     WHERE s.id = p.id AND s.next_due = p.old_due AND NOT s.paused AND NOT s.job_paused
    RETURNING s.id)
  INSERT INTO takt.ticks AS known (id, job_id, source, due_at, items, created_at)
  SELECT t.id, t.job_id, 'schedule', t.due_at, t.items::jsonb, greatest(t.fire_at, now())
    FROM unnest($8::integer[], $9::text[], $10::integer[], $11::timestamptz[], $12::text[], $13::timestamptz[])
           AS t(schedule_id, id, job_id, due_at, items, fire_at)
   WHERE t.schedule_id IN (SELECT id FROM advanced)
  ON CONFLICT (id) DO UPDATE SET finished_at = NULL, items = excluded.items, created_at = excluded.created_at
   WHERE known.finished_at IS NOT NULL AND known.published_at IS NULL AND known.begun_at IS NULL
  RETURNING id
)sql"};

// It leaves the head of schedules_fire to those that can tick.
constexpr Statement kFaulty{"schedules_faulty", R"sql(
  UPDATE takt.schedules s SET next_fire = now() + interval '1 hour', fault = p.fault
    FROM unnest($3::integer[], $4::timestamptz[], $5::text[]) AS p(id, old_due, fault)
   WHERE s.id = p.id AND s.next_due = p.old_due
     AND EXISTS (SELECT 1 FROM takt.leader WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now())
)sql"};

// Served by ticks_unpublished. A tick names its schedule by its id only: job, "/", schedule, "@", slot; no name holds an "@".
// The items of the latest 64 MiB; `left` are those of the others, which the sweep sends.
constexpr Statement kUnsent{"schedules_unsent", R"sql(
  SELECT s.id, t.id, j.name, s.name, (extract(epoch FROM s.misfire_after) * 1000)::bigint, (extract(epoch FROM s.jitter) * 1000)::bigint,
         (extract(epoch FROM t.due_at) * 1000000)::bigint, (extract(epoch FROM t.created_at) * 1000000)::bigint,
         (extract(epoch FROM now()) * 1000000)::bigint, j.queue,
         CASE WHEN t.bytes <= 67108864 THEN t.items::text END, t.bytes > 67108864
    FROM (SELECT *, sum(coalesce(pg_column_size(items), 0)) OVER (ORDER BY created_at DESC, id) AS bytes
            FROM takt.ticks WHERE published_at IS NULL AND finished_at IS NULL AND begun_at IS NULL AND source = 'schedule'
           ORDER BY created_at DESC, id LIMIT 20000) t
    JOIN takt.jobs j ON j.id = t.job_id
    JOIN takt.schedules s ON s.job_id = t.job_id AND s.name = substr(split_part(t.id, '@', 1), length(j.name) + 2)
)sql"};

constexpr Statement kTakeBack{"schedules_take_back", R"sql(
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
  SELECT count(*) FROM gone
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
  const auto rows = database_.exec(kDue, Params::of(kAhead + lookahead, kMaxSchedules));
  std::vector<DueSchedule> due;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Timestamp fire = rows.time(i, 14);
    const Timestamp now = rows.time(i, 15);
    if (fire > now + kAhead) {
      result.next_in = until_stored(fire, now);
      break;
    }
    DueSchedule schedule{rows.integer(i, 0),
                         rows.integer(i, 1),
                         std::string(rows.text(i, 2)),
                         std::string(rows.text(i, 3)),
                         std::string(rows.text(i, 4)),
                         std::string(rows.text(i, 5)),
                         std::string(rows.text(i, 6)),
                         std::string(rows.text(i, 12)),
                         {},
                         rows.time(i, 13),
                         now,
                         std::max(now, fire)};
    schedule.policy = {parse_misfire(rows.text(i, 7)).value_or(MisfirePolicy::once), Duration(rows.integer(i, 8)),
                       static_cast<int>(rows.integer(i, 9)), Duration(rows.integer(i, 10)), Duration(rows.integer(i, 11))};
    due.push_back(std::move(schedule));
  }
  result.more = due.size() == kMaxSchedules;
  return due;
}

ScheduleScan::Inherited ScheduleScan::inherit(const Term& term, Duration sweep_after) {
  const auto rows = database_.exec(kUnsent);
  Inherited inherited;
  std::vector<std::int64_t> schedules;
  std::vector<std::string> ids, dues;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string job(rows.text(i, 2));
    std::string name = job;
    name.append("/").append(rows.text(i, 3));
    SlotPolicy policy;
    policy.misfire_after = Duration(rows.integer(i, 4));
    policy.jitter = Duration(rows.integer(i, 5));
    const Timestamp due = rows.time(i, 6), created = rows.time(i, 7), now = rows.time(i, 8);
    const Timestamp fire = due + slot_jitter(name, due, policy.jitter);
    if (created > fire) continue;  // stored when it was late already
    if (is_missed(policy, due, now)) {
      schedules.push_back(rows.integer(i, 0));
      ids.emplace_back(rows.text(i, 1));
      dues.push_back(format_rfc3339(due));
    } else if (fire > now - sweep_after && !rows.boolean(i, 11)) {
      inherited.ticks.push_back(
          {std::string(rows.text(i, 1)), job, std::string(rows.text(i, 9)), "schedule", due, std::string(rows.text(i, 10)), fire});
    }
  }
  if (ids.empty()) return inherited;
  const auto gone = database_.exec_retrying(kTakeBack, Params::of(term.holder, term.number, schedules, ids, dues));
  inherited.taken_back = static_cast<int>(gone.integer(0, 0));
  return inherited;
}

ScheduleScan::Result ScheduleScan::run_once(const Term& term, Duration lookahead) {
  Result result;
  const auto due = read_due(lookahead, result);
  if (due.empty()) return result;

  std::vector<std::int64_t> ids, tick_schedules, tick_jobs;
  std::vector<std::string> old_dues, tick_dues, tick_fires;
  std::vector<std::optional<std::string>> next_dues, next_fires, last_dues, items;
  std::vector<std::string> tick_ids;
  std::unordered_map<std::string, TickRow> rows_by_id;
  Faults faults;
  for (const auto& schedule : due) {
    const auto planned = plan(schedule, faults);
    if (!planned) continue;
    const SlotPlan& plan = *planned;
    const std::string name = schedule.job + "/" + schedule.name;
    ids.push_back(schedule.id);
    old_dues.push_back(format_rfc3339(schedule.next_due));
    next_dues.push_back(time_text(plan.next_due));
    next_fires.push_back(time_text(plan.next_fire));
    last_dues.push_back(time_text(plan.last));
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
      tick_schedules.push_back(schedule.id);
      tick_ids.push_back(row.id);
      tick_jobs.push_back(schedule.job_id);
      tick_dues.push_back(format_rfc3339(slot));
      tick_fires.push_back(format_rfc3339(row.fire_at));
      items.push_back(row.items.empty() ? std::nullopt : std::optional(row.items));
      rows_by_id.emplace(row.id, std::move(row));
    }
    if (tick_ids.size() >= kMaxTicksARound) {
      result.more = true;
      break;
    }
  }
  if (!faults.ids.empty()) {
    database_.exec_retrying(kFaulty, Params::of(term.holder, term.number, faults.ids, faults.dues, faults.texts));
  }
  const auto stored = database_.exec_retrying(kRecord, Params::of(term.holder, term.number, ids, old_dues, next_dues, next_fires, last_dues,
                                                                  tick_schedules, tick_ids, tick_jobs, tick_dues, items, tick_fires));
  for (std::size_t i = 0; i < stored.size(); ++i) {
    result.ticks.push_back(std::move(rows_by_id.at(std::string(stored.text(i, 0)))));
  }
  return result;
}

}  // namespace takt
