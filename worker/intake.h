#pragma once
#include <memory>
#include <variant>

#include "core/amqp/message.h"
#include "core/amqp/publisher.h"
#include "core/log_throttle.h"
#include "core/metrics.h"
#include "core/signing.h"
#include "core/tick.h"
#include "worker/job_catalog.h"

namespace takt {

/// A genuine tick for a known job.
struct AcceptedTick {
  v1::JobTick tick;
  std::shared_ptr<const CatalogJob> job;
};
/// Dealt with: quarantined or dead-lettered, confirmed by the broker; to be acknowledged.
struct Disposed {};
/// Could not be dealt with now (the broker did not confirm); to be returned to the queue.
struct NotNow {};

/// The gate. An unverified message changes nothing but a counter and the quarantine. Thread-safe.
class Intake {
 public:
  /// `clock` is the one that `catalog` sets.
  Intake(const KeyRing& keys, JobCatalog& catalog, amqp::Publisher& publisher, const DatabaseClock& clock, Metrics& metrics,
         Duration max_tick_age)
      : keys_(keys),
        catalog_(catalog),
        publisher_(publisher),
        clock_(clock),
        metrics_(metrics),
        max_tick_age_(max_tick_age),
        refusals_(clock, kRejectReasons) {}

  /// Throws DatabaseUnavailable where PostgreSQL has never been reached, whose time decides.
  std::variant<AcceptedTick, Disposed, NotNow> judge(const amqp::Delivery& delivery);

 private:
  bool quarantine(const amqp::Delivery& delivery, RejectReason reason);
  bool dead_letter(const v1::JobTick& tick);

  const KeyRing& keys_;
  JobCatalog& catalog_;
  amqp::Publisher& publisher_;
  const DatabaseClock& clock_;
  Metrics& metrics_;
  Duration max_tick_age_;
  LogThrottle refusals_;  // by RejectReason: a flood of forgeries must not fill the disk with log
};

}  // namespace takt
