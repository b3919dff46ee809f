#include "dispatcher/leadership.h"

#include "core/process/random.h"

namespace takt {

namespace {

// Locks the one row. A leader that froze and woke finds another holder or term and updates nothing.
constexpr Statement kRenew{"leader_renew", R"sql(
  UPDATE takt.leader SET until = now() + $3 * interval '1 ms'
   WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()
  RETURNING term, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
)sql"};

constexpr Statement kAcquire{"leader_acquire", R"sql(
  UPDATE takt.leader SET holder = $1, term = term + 1, until = now() + $2 * interval '1 ms'
   WHERE name = 'dispatcher' AND until <= now()
  RETURNING term, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
)sql"};

constexpr Statement kRelease{"leader_release", R"sql(
  UPDATE takt.leader SET until = now() WHERE name = 'dispatcher' AND holder = $1 AND term = $2
)sql"};

}  // namespace

Leadership::Leadership(Database& database, Duration lease, const Clock& clock, std::string holder)
    : database_(database), lease_(lease), clock_(clock), holder_(std::move(holder)), database_clock_(clock) {
  if (holder_.empty()) throw std::invalid_argument("a leader without an id would be everybody");
}

bool Leadership::try_lead() {
  const auto asked = clock_.steady();
  std::int64_t term = term_.load();
  const auto heard = [&](const Rows& rows) {
    database_clock_.hear(rows.integer(0, 1), asked);
    return rows.integer(0, 0);
  };
  if (term != 0) {
    const auto rows = database_.exec(kRenew, Params::of(holder_, term, lease_));
    term = rows.empty() ? 0 : heard(rows);
  }
  if (term == 0) {
    const auto rows = database_.exec(kAcquire, Params::of(holder_, lease_));
    if (!rows.empty()) term = heard(rows);
  }
  if (term != term_.load() || asked.time_since_epoch().count() > safe_until_.load()) contact_since_ = asked.time_since_epoch().count();
  safe_until_ = term == 0 ? 0 : (asked + lease_).time_since_epoch().count();
  term_ = term;
  return term != 0;
}

void Leadership::release() {
  const std::int64_t term = term_.exchange(0);
  if (term != 0) database_.exec(kRelease, Params::of(holder_, term));
}

Duration Leadership::contact() const {
  if (!leading()) return Duration(0);
  return std::chrono::floor<Duration>(clock_.steady().time_since_epoch() - SteadyTime::duration(contact_since_.load()));
}

bool Leadership::leading() const { return term_.load() != 0 && clock_.steady().time_since_epoch().count() < safe_until_.load(); }

}  // namespace takt
