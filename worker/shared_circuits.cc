#include "worker/shared_circuits.h"

#include "core/observe/log.h"

namespace takt {

namespace {

constexpr Duration kHeardWithin = std::chrono::seconds(1);  // how often workers call refresh()

// By its primary key; a table with a row for each destination that fails.
constexpr Statement kWorks{"destination_works", "DELETE FROM takt.failing_destinations WHERE name = $1 RETURNING opened_at IS NOT NULL"};
constexpr Statement kFails{"destination_fails", R"sql(
  INSERT INTO takt.failing_destinations AS d (name, failures, since, last_at, error, worker, opened_at, until)
  SELECT $1, $2, now(), now(), $3, $4, CASE WHEN o THEN now() END, CASE WHEN o THEN now() + $7 * interval '1 ms' END
    FROM (SELECT $5::boolean OR $2::bigint >= $6::bigint) AS n(o)
  ON CONFLICT (name) DO UPDATE
     SET failures = d.failures + excluded.failures, last_at = now(), error = excluded.error, worker = excluded.worker,
         opened_at = CASE WHEN $5 OR d.failures + $2 >= $6 THEN coalesce(d.opened_at, now()) ELSE d.opened_at END,
         until = CASE WHEN $5 OR d.opened_at IS NOT NULL OR d.failures + $2 >= $6 THEN greatest(d.until, now() + $7 * interval '1 ms') END
  RETURNING failures, opened_at IS NOT NULL, opened_at = now(), opened_at > now() - $8 * interval '1 ms'
)sql"};
constexpr Statement kFailing{"destinations_failing",
                             "SELECT name, opened_at IS NOT NULL, coalesce((extract(epoch FROM freed_at) * 1000000)::bigint, 0)"
                             "  FROM takt.failing_destinations ORDER BY opened_at IS NULL LIMIT 1000"};

}  // namespace

bool SharedCircuits::exchange(const std::string& job, const JobCircuit& circuit, Duration took) {
  if (circuit.breaker == nullptr || circuit.destination.size() > kNameBytes) return false;
  const auto news = circuit.breaker->news(circuit.destination);
  if (!news.any()) return false;
  bool opened = false;
  try {
    if (news.works) {
      const auto gone = database_.exec(kWorks, Params::of(circuit.destination));
      if (!gone.empty() && gone.boolean(0, 0)) log_info("destination works again", {{"job", job}});
    }
    std::optional<CircuitBreaker::Failing> failing;
    if (news.failures > 0) {
      const auto rows =
          database_.exec(kFails, Params::of(circuit.destination, static_cast<std::int64_t>(news.failures), news.error, worker_, news.open,
                                            static_cast<std::int64_t>(circuit.config.failures), news.pause, took + kHeardWithin));
      failing = {circuit.destination, rows.boolean(0, 1)};
      opened = !rows.is_null(0, 3) && rows.boolean(0, 3);
      if (!rows.is_null(0, 2) && rows.boolean(0, 2))
        log_warn("destination left alone",
                 {{"job", job}, {"failures", rows.integer(0, 0)}, {"error", news.error}, {"ms", news.pause.count()}});
    }
    circuit.breaker->told(circuit.destination, failing);
  } catch (const std::exception& error) {
    circuit.breaker->not_told(circuit.destination, news);
    log_debug("judgment not shared", {{"job", job}, {"error", error.what()}});
  }
  return opened;
}

void SharedCircuits::refresh(Database& vital, std::initializer_list<CircuitBreaker*> breakers) {
  const auto rows = vital.exec(kFailing);
  std::vector<CircuitBreaker::Failing> failing;
  for (std::size_t i = 0; i < rows.size(); ++i) failing.push_back({std::string(rows.text(i, 0)), rows.boolean(i, 1), rows.integer(i, 2)});
  for (auto* breaker : breakers) breaker->hear(failing);
}

}  // namespace takt
