#pragma once
#include <condition_variable>
#include <map>
#include <mutex>
#include <vector>

#include "core/amqp/publisher.h"
#include "core/db/database.h"
#include "core/observe/metrics.h"
#include "core/tick/tick_message.h"
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
    bool more = false;  ///< further ticks could be swept now
  };

  /// A tick's message, signed, and what is to be known of it once it is confirmed.
  struct Signed {
    std::string id;
    std::string source;
    Timestamp due_at;
    amqp::Message message;
  };

  /// How old a tick row without a confirm is before the sweep takes it for one that nobody is publishing.
  static constexpr Duration kSweepAfter = std::chrono::seconds(2);

  Outbox(Database& database, amqp::Publisher& publisher, const KeyRing& keys, const Clock& clock, Metrics& metrics);

  /// Fresh tick rows, so that they need not wait for a sweep; each is signed now, with the time of its fire_at, and kept
  /// until then. Any thread. Holds at most 20,000, and 64 MiB; further ones are left to the sweep.
  void offer(const std::vector<TickRow>& ticks);
  /// Waits up to `timeout` for offers whose time has come: the earliest, at most 500. Once stopped, it waits for those that
  /// are held, and for nothing else.
  std::vector<Signed> take_offered(Duration timeout);
  /// Publishes ticks through `publisher` and marks those confirmed. True if all were. Any thread.
  bool publish(amqp::Publisher& publisher, const Term& term, std::vector<Signed> ticks);
  /// Another leads, and its sweep sends what is kept here.
  void forget_offers();
  /// No further offers will come.
  void stop();
  /// Tick rows older than kSweepAfter without a confirm, and dead letters; at most 1,000 and 8 MiB of each. A tick that no
  /// message can carry is ended and becomes a letter.
  Swept sweep(const Term& term);
  /// A wake tick: published without waiting, since the scan repeats. `again`: the one before it may have been lost in silence, as
  /// where an alternate exchange takes what nobody consumes; so this one goes through the queue of ticks. False if it was not
  /// taken for publishing.
  bool publish_wake(const TickRow& tick, bool again);

 private:
  /// Nothing where no message can carry it.
  [[nodiscard]] std::optional<Signed> sign(const TickRow& tick, Timestamp now) const;
  bool publish_unpublished(const Term& term, Swept& swept);
  bool publish_dead_letters(const Term& term, int& count);

  Database& database_;
  amqp::Publisher& publisher_;
  const KeyRing& keys_;
  const Clock& clock_;
  Metrics& metrics_;
  std::mutex mutex_;
  std::condition_variable offered_;
  std::multimap<SteadyTime, Signed> fresh_;  // by when they leave; guarded by mutex_
  std::size_t fresh_bytes_ = 0;              // of their bodies; guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
};

}  // namespace takt
