#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "core/amqp/consumer.h"
#include "core/db/database.h"
#include "core/installation/signer_check.h"
#include "core/observe/log_throttle.h"
#include "core/observe/metrics.h"
#include "core/observe/status_server.h"
#include "core/tick/signing.h"
#include "dlq/letter.h"
#include "dlq/store.h"

namespace takt {

/// The service: takes what arrives in takt.dead, stores it once by id, then acknowledges. Threads: the consumer's, and
/// one that stores batches of at most 100 and 8 MiB. Holds at most 100 deliveries of at most kMaxBodyBytes (the prefetch).
/// A letter that PostgreSQL refuses is kept as a message; the others go on. While this process lacks the key that the leading dispatcher
/// signs with, a letter that it cannot verify goes back to the queue: another archive may have the key.
/// Of what nobody signed `most_unsigned` is kept, the newest: an archive that has stored a tenth of that leaves nine tenths. For a moment
/// a batch may be above it, and a tenth for each further archive. Of such messages the log has a line a second.
/// While PostgreSQL is away it waits with what it holds; several archives may run.
class Archive {
 public:
  Archive(Database& database, amqp::BrokerSettings broker, const KeyRing& keys, SignerCheck& signer, const Clock& clock, Metrics& metrics,
          LetterVolume most_unsigned = kMostUnsigned);
  ~Archive();
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  void start();
  void stop();
  [[nodiscard]] std::vector<HealthPart> health() const;

 private:
  void store_loop();
  void give_back_foreign(std::deque<amqp::Delivery>& batch);
  void store(const std::deque<amqp::Delivery>& batch);
  void store_singly(const std::deque<amqp::Delivery>& batch, std::size_t first, std::vector<Letter>& letters);
  void tell(const Letter& letter);
  void bound_unsigned();

  Database& database_;
  const KeyRing& keys_;
  SignerCheck& signer_;
  const Clock& clock_;
  Metrics& metrics_;
  LogThrottle given_back_;
  const LetterVolume most_unsigned_;
  LogThrottle unsigned_;         // by UnsignedLine (archive.cc): anybody may cause them at any rate
  LetterVolume unsigned_since_;  // stored since the last look at all of them; of the thread that stores
  std::int64_t removed_ = 0;     // since the last line about it
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<amqp::Delivery> deliveries_;  // guarded by mutex_
  bool stopping_ = false;                  // guarded by mutex_
  std::thread thread_;
  std::unique_ptr<amqp::Consumer> consumer_;
};

}  // namespace takt
