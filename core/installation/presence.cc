#include "core/installation/presence.h"

#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>

#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/process/random.h"
#include "core/process/version.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kIdDigits = 12;
constexpr std::size_t kMostDetail = 500;
constexpr int kFirstSigns = 4;

struct Written {
  std::string id, kind;
  std::vector<std::string> roles;
  std::string host;
  int pid = 0;
  std::string version;
  std::vector<std::string> keys, queues;
  bool ready = false;
  std::string detail;
  int runs = 0, places = 0;
  std::string waiting, failing;  ///< JSON
  static constexpr auto fields() {
    return std::tuple(&Written::id, &Written::kind, &Written::roles, &Written::host, &Written::pid, &Written::version, &Written::keys,
                      &Written::queues, &Written::ready, &Written::detail, &Written::runs, &Written::places, &Written::waiting,
                      &Written::failing);
  }
};

// One row by its primary key, updated in place (fillfactor 50, no index on what changes).
constexpr Query<Written, NoRow> kWrite{"service_seen", R"sql(
  INSERT INTO takt.services AS s (id, kind, roles, host, pid, version, keys, queues, ready, detail, runs, places, waiting, failing)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::jsonb, $14::jsonb)
  ON CONFLICT (id) DO UPDATE
     SET seen_at = now(), keys = excluded.keys, queues = excluded.queues, ready = excluded.ready, detail = excluded.detail,
         runs = excluded.runs, places = excluded.places, waiting = excluded.waiting, failing = excluded.failing
)sql"};

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "unknown";
  return printable(name.data(), 63);
}

}  // namespace

std::vector<std::string> shown_keys(const KeyRing& keys, Timestamp now) {
  std::vector<std::string> shown;
  for (const auto& key : keys.keys()) {
    if (key.valid_at(now)) shown.push_back(std::string(to_string(key.role)) + " " + key.fingerprint);
  }
  return shown;
}

ServiceIdentity identify_service(std::string kind, std::vector<std::string> roles, const KeyRing& keys, Timestamp now) {
  return {random_id().substr(0, kIdDigits), std::move(kind),      std::move(roles), host_name(), ::getpid(),
          std::string(takt_version()),      shown_keys(keys, now)};
}

Presence::Presence(Database& database, ServiceIdentity identity, const Clock& clock, std::function<SignOfLife()> look)
    : database_(database), identity_(std::move(identity)), look_(std::move(look)), failed_(clock, 1, std::chrono::minutes(1)) {}

Presence::~Presence() { stop(); }

void Presence::start() {
  write();
  thread_ = std::thread([this] {
    std::unique_lock lock(mutex_);
    // At first more often: what a service takes and whether it is ready shows in its first second.
    for (int round = 0;
         !ending_.wait_for(lock, round < kFirstSigns ? kSignOfLife / kFirstSigns : kSignOfLife, [this] { return stopping_; }); ++round) {
      lock.unlock();
      write();
      lock.lock();
    }
  });
}

void Presence::stop() {
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_ || !thread_.joinable()) return;
    stopping_ = true;
  }
  ending_.notify_all();
  thread_.join();
  if (!database_.healthy()) return;  // a grace is not for waiting once more for who has not answered; the row counts as silent
  try {
    database_.exec(std::string("DELETE FROM takt.services WHERE id = $1"), Params::of(identity_.id));
  } catch (const std::exception& error) {
    log_debug("service not taken off", {{"error", error.what()}});  // it counts as silent, and is forgotten as such
  }
}

void Presence::write() {
  try {
    const auto sign = look_();
    auto failing = nlohmann::json::array();
    for (const auto& one : sign.failing) {
      if (failing.size() == kMostFailing) break;
      failing.push_back({{"job", one.job}, {"attempts", one.attempts}, {"error", one.error}});
      if (one.few_since_s) failing.back()["few_since_s"] = *one.few_since_s;
    }
    execute(database_, kWrite,
            {.id = identity_.id,
             .kind = identity_.kind,
             .roles = identity_.roles,
             .host = identity_.host,
             .pid = identity_.pid,
             .version = identity_.version,
             .keys = sign.keys,
             .queues = sign.queues,
             .ready = sign.ready,
             .detail = printable(sign.detail, kMostDetail),
             .runs = sign.runs,
             .places = sign.places,
             .waiting = nlohmann::json(sign.waiting).dump(),
             .failing = failing.dump()});
  } catch (const std::exception& error) {
    if (failed_.due(0) > 0) log_warn("no sign of life written", {{"error", error.what()}});
  }
}

}  // namespace takt
