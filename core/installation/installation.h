#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/db/database.h"
#include "core/installation/presence.h"

namespace takt {

/// A service as its row in takt.services tells; ages by PostgreSQL's clock.
struct ServiceRow {
  ServiceIdentity identity;
  std::vector<std::string> queues;
  bool leading = false, ready = true;
  std::string detail;
  int runs = 0, places = 0;
  std::vector<FailingJob> failing;
  double age_s = 0;     ///< since it started
  double unseen_s = 0;  ///< since its last sign of life

  [[nodiscard]] bool silent() const { return unseen_s > std::chrono::duration<double>(kSilentAfter).count(); }
  /// So young that it is no news if it is not ready yet.
  [[nodiscard]] bool starting() const { return age_s < std::chrono::duration<double>(kSignOfLife).count() + 1; }
  [[nodiscard]] bool does(std::string_view role) const;
  /// A key with this fingerprint, in whatever role.
  [[nodiscard]] bool holds(const std::string& fingerprint) const;
};

struct Installation {
  struct Queue {
    std::string name;
    std::vector<std::string> jobs;  ///< the first few, by name
    std::int64_t job_count = 0;
  };
  struct HeldJob {
    std::string job, error;
    Timestamp until, since;  ///< by PostgreSQL's clock
    bool over = false;       ///< `until` has passed
    std::int64_t failures = 0;
  };
  struct BlockedJob {
    std::string job, error;  ///< of one of its items
    std::int64_t items = 0;  ///< counted up to kMostCounted
  };
  struct PausedJob {
    std::string job, who;  ///< empty: not known any more
    std::optional<Timestamp> since;
  };
  static constexpr std::int64_t kMostCounted = 1000;

  std::vector<ServiceRow> services;  ///< silent ones as well; at most 1,000, the living first
  std::vector<Queue> queues;         ///< of all jobs
  // At most 20 each, by name.
  std::vector<HeldJob> held;        ///< their destination is left alone
  std::vector<BlockedJob> blocked;  ///< items of theirs wait for an operator
  std::vector<PausedJob> paused;
  std::int64_t held_count = 0, blocked_count = 0, paused_count = 0;  ///< all of them
  std::string leader;                                                ///< ServiceIdentity::name() of who holds the lease, or held it last
  std::int64_t term = 0;
  bool led = false;                             ///< somebody holds it
  std::map<std::string, std::int64_t> waiting;  ///< messages in the broker's queues, by queue, as the leader saw them up to 20 s ago

  /// Of a broker's queue; nullopt: not known.
  [[nodiscard]] std::optional<std::int64_t> waiting_in(const std::string& queue) const;
};

/// Six statements; their cost grows with the number of services and jobs, not of items.
Installation read_installation(Database& database);

/// Removes the row of a silent service, by its id; who it was ("6908f4245f95@web-1"), empty if none that is silent has this id.
std::string forget_service(Database& database, const std::string& id, const std::string& who);

/// Removes the rows of services that went silent kForgetSilent ago, and of destinations that no request failed at for a day;
/// how many.
int forget_gone(Database& database);

}  // namespace takt
