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

namespace takt {

/// The service: takes what arrives in takt.dead, stores it once by id, then acknowledges. Threads: the consumer's, and
/// one that stores batches of at most 100 and 8 MiB. Holds at most 100 deliveries of at most kMaxBodyBytes (the prefetch).
/// A letter that PostgreSQL refuses is kept as a message; the others go on. While this process lacks the key that the leading dispatcher
/// signs with, a letter that it cannot verify goes back to the queue: another archive may have the key.
/// While PostgreSQL is away it waits with what it holds; several archives may run.
class Archive {
 public:
  Archive(Database& database, amqp::BrokerSettings broker, const KeyRing& keys, SignerCheck& signer, const Clock& clock, Metrics& metrics);
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

  Database& database_;
  const KeyRing& keys_;
  SignerCheck& signer_;
  const Clock& clock_;
  Metrics& metrics_;
  LogThrottle given_back_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<amqp::Delivery> deliveries_;  // guarded by mutex_
  bool stopping_ = false;                  // guarded by mutex_
  std::thread thread_;
  std::unique_ptr<amqp::Consumer> consumer_;
};

}  // namespace takt
