#pragma once
#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "core/amqp/publisher.h"
#include "core/db/database.h"
#include "core/metrics.h"
#include "core/tick_message.h"
#include "dispatcher/leadership.h"

namespace takt {

/// Publishes what PostgreSQL says must be published: tick rows without a confirm, and dead letters. A publish that is
/// not confirmed is repeated by a later sweep, with the same id, so a repeat changes nothing.
class Outbox {
 public:
  struct Swept {
    int ticks = 0;
    int dead_letters = 0;
    bool all_confirmed = true;
  };

  Outbox(Database& database, amqp::Publisher& publisher, const KeyRing& keys, const Clock& clock, Metrics& metrics);

  /// Fresh tick rows, so that they need not wait for a sweep. Any thread. Holds at most 20,000; further ones are left
  /// to the sweep.
  void offer(std::vector<TickRow> ticks);
  /// Waits up to `timeout` for offers: the oldest, at most 500.
  std::vector<TickRow> take_offered(Duration timeout);
  /// Publishes tick rows and marks those confirmed. True if all were.
  bool publish(const Term& term, const std::vector<TickRow>& ticks);
  /// Ends the waits for offers.
  void stop();
  /// Tick rows older than 2 s without a confirm, and dead letters; at most 1,000 of each.
  Swept sweep(const Term& term);
  /// A wake tick: published without waiting, since the scan repeats. False if it was not taken for publishing.
  bool publish_unwatched(const TickRow& tick);

 private:
  bool publish_unpublished(const Term& term, int& count);
  bool publish_dead_letters(const Term& term, int& count);

  Database& database_;
  amqp::Publisher& publisher_;
  const KeyRing& keys_;
  const Clock& clock_;
  Metrics& metrics_;
  std::mutex mutex_;
  std::condition_variable offered_;
  std::deque<TickRow> fresh_;  // guarded by mutex_
  bool stopping_ = false;      // guarded by mutex_
};

}  // namespace takt
