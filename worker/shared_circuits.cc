#include "worker/shared_circuits.h"

#include "core/db/query.h"
#include "core/observe/log.h"

namespace takt {

namespace {

constexpr Duration kHeardWithin = std::chrono::seconds(1);  // how often workers call refresh()

struct Works {
  std::string destination;
  static constexpr auto fields() { return std::tuple(&Works::destination); }
};
struct Gone {
  bool was_open = false;
  static constexpr auto fields() { return std::tuple(Field("was_open", &Gone::was_open)); }
};
struct Fails {
  std::string destination;
  std::int64_t failures = 0;
  std::string error, worker;
  bool opens = false;  ///< whatever the number of failures
  std::int64_t too_many = 0;
  Duration pause{};
  Duration heard_within{};
  static constexpr auto fields() {
    return std::tuple(&Fails::destination, &Fails::failures, &Fails::error, &Fails::worker, &Fails::opens, &Fails::too_many, &Fails::pause,
                      &Fails::heard_within);
  }
};
struct Failed {
  std::int64_t failures = 0;
  bool open = false;
  bool opened_now = false, opened_lately = false;
  static constexpr auto fields() {
    return std::tuple(Field("failures", &Failed::failures), Field("open", &Failed::open), Field("opened_now", &Failed::opened_now),
                      Field("opened_lately", &Failed::opened_lately));
  }
};
struct FailingRow {
  std::string name;
  bool open = false;
  std::int64_t freed_at = 0;
  static constexpr auto fields() {
    return std::tuple(Field("name", &FailingRow::name), Field("open", &FailingRow::open), Field("freed_us", &FailingRow::freed_at));
  }
};

// By its primary key; a table with a row for each destination that fails.
constexpr Query<Works, Gone> kWorks{"destination_works",
                                    "DELETE FROM takt.failing_destinations WHERE name = $1 RETURNING opened_at IS NOT NULL AS was_open"};
constexpr Query<Fails, Failed> kFails{"destination_fails", R"sql(
  INSERT INTO takt.failing_destinations AS d (name, failures, since, last_at, error, worker, opened_at, until)
  SELECT $1, $2, now(), now(), $3, $4, CASE WHEN o THEN now() END, CASE WHEN o THEN now() + $7 * interval '1 ms' END
    FROM (SELECT $5::boolean OR $2::bigint >= $6::bigint) AS n(o)
  ON CONFLICT (name) DO UPDATE
     SET failures = d.failures + excluded.failures, last_at = now(), error = excluded.error, worker = excluded.worker,
         opened_at = CASE WHEN $5 OR d.failures + $2 >= $6 THEN coalesce(d.opened_at, now()) ELSE d.opened_at END,
         until = CASE WHEN $5 OR d.opened_at IS NOT NULL OR d.failures + $2 >= $6 THEN greatest(d.until, now() + $7 * interval '1 ms') END
  RETURNING failures, opened_at IS NOT NULL AS open, opened_at = now() AS opened_now,
            opened_at > now() - $8 * interval '1 ms' AS opened_lately
)sql"};
constexpr Query<NoRequest, FailingRow> kFailing{
    "destinations_failing",
    "SELECT name, opened_at IS NOT NULL AS open, coalesce((extract(epoch FROM freed_at) * 1000000)::bigint, 0) AS freed_us"
    "  FROM takt.failing_destinations ORDER BY opened_at IS NULL LIMIT 1000"};

}  // namespace

bool SharedCircuits::exchange(const std::string& job, const JobCircuit& circuit, Duration took) {
  if (circuit.breaker == nullptr || circuit.destination.size() > kNameBytes) return false;
  const auto news = circuit.breaker->news(circuit.destination);
  if (!news.any()) return false;
  bool opened = false;
  try {
    if (news.works) {
      const auto gone = query(database_, kWorks, {circuit.destination});
      if (!gone.empty() && gone[0].was_open) log_info("destination works again", {{"job", job}});
    }
    std::optional<CircuitBreaker::Failing> failing;
    if (news.failures > 0) {
      const auto known = query(database_, kFails,
                               {.destination = circuit.destination,
                                .failures = news.failures,
                                .error = news.error,
                                .worker = worker_,
                                .opens = news.open,
                                .too_many = circuit.config.failures,
                                .pause = news.pause,
                                .heard_within = took + kHeardWithin})
                             .at(0);
      failing = {circuit.destination, known.open};
      opened = known.opened_lately;
      if (known.opened_now)
        log_warn("destination left alone", {{"job", job}, {"failures", known.failures}, {"error", news.error}, {"ms", news.pause.count()}});
    }
    circuit.breaker->told(circuit.destination, failing);
  } catch (const std::exception& error) {
    circuit.breaker->not_told(circuit.destination, news);
    log_debug("judgment not shared", {{"job", job}, {"error", error.what()}});
  }
  return opened;
}

void SharedCircuits::refresh(Database& vital, std::initializer_list<CircuitBreaker*> breakers) {
  std::vector<CircuitBreaker::Failing> failing;
  for (const auto& row : query(vital, kFailing)) failing.push_back({row.name, row.open, row.freed_at});
  for (auto* breaker : breakers) breaker->hear(failing);
}

}  // namespace takt
