#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <variant>

#include "core/amqp/message.h"
#include "core/amqp/publisher.h"
#include "core/installation/signer_check.h"
#include "core/observe/log_throttle.h"
#include "core/observe/metrics.h"
#include "core/tick/signing.h"
#include "core/tick/tick.h"
#include "worker/job_catalog.h"

namespace takt {

/// A genuine tick for a known job.
struct AcceptedTick {
  v1::JobTick tick;
  std::shared_ptr<const CatalogJob> job;
};
/// Dealt with: quarantined or dead-lettered, confirmed by the broker, its row in the ledger finished; to be acknowledged.
struct Disposed {};
/// Could not be dealt with now (the broker did not confirm, or this process has no job of that name yet, or none that it
/// understands, or not the key of who signed it); to be returned to the queue, after a moment.
struct NotNow {};

/// The gate. An unverified message changes nothing but a counter and the quarantine. Thread-safe.
class Intake {
 public:
  /// `clock` is the one that `catalog` sets.
  Intake(Database& database, const KeyRing& keys, SignerCheck& signer, JobCatalog& catalog, amqp::Publisher& publisher,
         const DatabaseClock& clock, Metrics& metrics, Duration max_tick_age)
      : database_(database),
        keys_(keys),
        signer_(signer),
        catalog_(catalog),
        publisher_(publisher),
        clock_(clock),
        metrics_(metrics),
        max_tick_age_(max_tick_age),
        refusals_(clock, kRejectReasons),
        unreadable_(clock, 1),
        foreign_(clock, 1) {}

  /// Throws DatabaseUnavailable where PostgreSQL does not answer and is needed: until its time was heard, and for a job
  /// that is not known here, whose tick's row is finished then.
  std::variant<AcceptedTick, Disposed, NotNow> judge(const amqp::Delivery& delivery);

 private:
  bool quarantine(const amqp::Delivery& delivery, RejectReason reason);
  bool give_up(const v1::JobTick& tick);
  bool asked_before(const amqp::Delivery& delivery, const std::string& job);

  Database& database_;
  const KeyRing& keys_;
  SignerCheck& signer_;
  JobCatalog& catalog_;
  amqp::Publisher& publisher_;
  const DatabaseClock& clock_;
  Metrics& metrics_;
  Duration max_tick_age_;
  LogThrottle refusals_;  // by RejectReason: a flood of forgeries must not fill the disk with log
  LogThrottle unreadable_;
  LogThrottle foreign_;
  std::mutex mutex_;
  std::map<std::string, SteadyTime> doubted_;  // names of no job, and when first met; guarded by mutex_; at most 1,000
};

}  // namespace takt
