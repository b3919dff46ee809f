#include "dispatcher/leadership.h"

#include "core/db/query.h"
#include "core/process/random.h"

namespace takt {

namespace {

struct Renewal {
  std::string holder;
  std::int64_t term = 0;
  Duration lease{};
  static constexpr auto fields() { return std::tuple(&Renewal::holder, &Renewal::term, &Renewal::lease); }
};
struct Acquisition {
  std::string holder;
  Duration lease{};
  static constexpr auto fields() { return std::tuple(&Acquisition::holder, &Acquisition::lease); }
};
struct Led {
  std::int64_t term = 0;
  std::int64_t now_us = 0;
  static constexpr auto fields() { return std::tuple(Field("term", &Led::term), Field("now_us", &Led::now_us)); }
};

// Locks the one row. A leader that froze and woke finds another holder or term and updates nothing.
constexpr Query<Renewal, Led> kRenew{"leader_renew", R"sql(
  UPDATE takt.leader SET until = now() + $3 * interval '1 ms'
   WHERE name = 'dispatcher' AND holder = $1 AND term = $2 AND until > now()
  RETURNING term, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
)sql"};

constexpr Query<Acquisition, Led> kAcquire{"leader_acquire", R"sql(
  UPDATE takt.leader SET holder = $1, term = term + 1, until = now() + $2 * interval '1 ms'
   WHERE name = 'dispatcher' AND until <= now()
  RETURNING term, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
)sql"};

constexpr Query<Term, NoRow> kRelease{"leader_release", R"sql(
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
  const auto heard = [&](const std::vector<Led>& rows) {
    if (rows.empty()) return std::int64_t{0};
    database_clock_.hear(rows[0].now_us, asked);
    return rows[0].term;
  };
  if (term != 0) term = heard(query(database_, kRenew, {holder_, term, lease_}));
  if (term == 0) term = heard(query(database_, kAcquire, {holder_, lease_}));
  if (term != term_.load() || asked.time_since_epoch().count() > safe_until_.load()) contact_since_ = asked.time_since_epoch().count();
  safe_until_ = term == 0 ? 0 : (asked + lease_).time_since_epoch().count();
  term_ = term;
  return term != 0;
}

void Leadership::release() {
  const std::int64_t term = term_.exchange(0);
  if (term != 0) execute(database_, kRelease, {holder_, term});
}

Duration Leadership::contact() const {
  if (!leading()) return Duration(0);
  return std::chrono::floor<Duration>(clock_.steady().time_since_epoch() - SteadyTime::duration(contact_since_.load()));
}

bool Leadership::leading() const { return term_.load() != 0 && clock_.steady().time_since_epoch().count() < safe_until_.load(); }

}  // namespace takt
