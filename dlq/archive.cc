#include "dlq/archive.h"

#include <algorithm>

#include "core/amqp/topology.h"
#include "core/observe/log.h"
#include "core/process/crash_point.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::uint16_t kPrefetch = 100;
/// Of letters' bodies in one statement, unless one alone is larger: the statement holds each several times.
constexpr std::size_t kBytesAStatement = 8 * 1024 * 1024;
constexpr Duration kDatabasePause = std::chrono::milliseconds(500);

enum UnsignedLine : std::size_t { kArchived, kSetAside, kRemoved, kNotRemoved, kUnsignedLines };

}  // namespace

Archive::Archive(Database& database, amqp::BrokerSettings broker, const KeyRing& keys, SignerCheck& signer, const Clock& clock,
                 Metrics& metrics, LetterVolume most_unsigned)
    : database_(database),
      keys_(keys),
      signer_(signer),
      clock_(clock),
      metrics_(metrics),
      given_back_(clock, 1),
      most_unsigned_(most_unsigned),
      unsigned_(clock, kUnsignedLines),
      unsigned_since_(most_unsigned) {  // what others stored is not known: the first one has all looked at
  amqp::Consumer::Settings settings{{amqp::kDeadQueue}, kPrefetch, {}};
  consumer_ = std::make_unique<amqp::Consumer>(std::move(broker), std::move(settings), [this](amqp::Delivery&& delivery) {
    {
      const std::scoped_lock lock(mutex_);
      deliveries_.push_back(std::move(delivery));
    }
    arrived_.notify_one();
  });
}

Archive::~Archive() { stop(); }

void Archive::start() {
  thread_ = std::thread([this] { store_loop(); });
  consumer_->start();
}

void Archive::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_all();
  if (thread_.joinable()) thread_.join();
  consumer_->stop();
}

/// Stored as it looks here, a genuine letter would be a message, which is never replayed.
void Archive::give_back_foreign(std::deque<amqp::Delivery>& batch) {
  const auto foreign = [&](const amqp::Delivery& delivery) { return !is_takts(delivery, keys_, clock_.now()); };
  if (std::none_of(batch.begin(), batch.end(), foreign) || signer_.ask() != SignerCheck::Verdict::lacks) return;
  std::erase_if(batch, [&](const amqp::Delivery& delivery) {
    if (!foreign(delivery)) return false;
    consumer_->reject(delivery, true);
    if (const auto letters = given_back_.due(0); letters > 0)
      log_error("dead letters given back", {{"letters", letters}, {"error", "this archive " + signer_.fault()}});
    return true;
  });
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, kDatabasePause, [&] { return stopping_; });
}

void Archive::store(const std::deque<amqp::Delivery>& batch) {
  std::size_t first = 0;
  while (first < batch.size()) {
    std::vector<Letter> letters;
    std::size_t end = first;
    for (std::size_t bytes = 0; end < batch.size() && (end == first || bytes + batch[end].body.size() <= kBytesAStatement); ++end) {
      letters.push_back(read_letter(batch[end], keys_, clock_.now()));
      bytes += batch[end].body.size();
    }
    try {
      store_letters(database_, letters);
    } catch (const DatabaseError& error) {
      if (error.retryable()) throw;
      store_singly(batch, first, letters);
    }
    for (const auto& letter : letters) tell(letter);
    if (std::any_of(letters.begin(), letters.end(), [](const Letter& letter) { return !letter.genuine; })) bound_unsigned();
    first = end;
  }
}

void Archive::tell(const Letter& letter) {
  metrics_.dead_letters_archived(letter.kind);
  if (letter.genuine) {
    log_info("dead letter archived", {{"id", letter.id}, {"kind", letter.kind}, {"job", letter.job}, {"reason", letter.reason}});
    return;
  }
  ++unsigned_since_.letters;
  for (const auto* part : {&letter.body, &letter.headers, &letter.x_death})
    unsigned_since_.bytes += static_cast<std::int64_t>(*part ? (*part)->size() : 0);
  if (const auto messages = unsigned_.due(kArchived); messages > 0)
    log_warn("unsigned message archived", {{"id", letter.id}, {"reason", letter.reason}, {"messages", messages}});
}

/// Whatever becomes of it, what is stored is stored: genuine letters do not wait for it to succeed.
void Archive::bound_unsigned() {
  if (unsigned_since_.letters < most_unsigned_.letters / 10 && unsigned_since_.bytes < most_unsigned_.bytes / 10) return;
  unsigned_since_ = {};
  try {
    removed_ += bound_unsigned_letters(database_, {most_unsigned_.letters / 10 * 9, most_unsigned_.bytes / 10 * 9});
  } catch (const std::exception& error) {
    if (unsigned_.due(kNotRemoved) > 0) log_error("unsigned messages not removed", {{"error", error.what()}});
  }
  if (removed_ == 0 || unsigned_.due(kRemoved) == 0) return;
  log_warn("unsigned messages removed", {{"messages", removed_}, {"most", most_unsigned_.letters}, {"most_bytes", most_unsigned_.bytes}});
  removed_ = 0;
}

/// One of them is refused by PostgreSQL: it is kept as a message, and is in nobody's way.
void Archive::store_singly(const std::deque<amqp::Delivery>& batch, std::size_t first, std::vector<Letter>& letters) {
  for (std::size_t i = 0; i < letters.size(); ++i) {
    try {
      store_letters(database_, {letters[i]});
    } catch (const DatabaseError& error) {
      if (error.retryable()) throw;
      const bool genuine = letters[i].genuine;
      if (genuine || unsigned_.due(kSetAside) > 0)
        log_error("dead letter set aside", {{"id", printable(letters[i].id, 300)}, {"error", error.what()}});
      letters[i] = as_message(batch[first + i], clock_.now(), error.what());
      letters[i].genuine = genuine;
      store_letters(database_, {letters[i]});
    }
  }
}

void Archive::store_loop() {
  bool failing = false;
  while (true) {
    std::deque<amqp::Delivery> batch;
    {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return stopping_ || !deliveries_.empty(); });
      if (stopping_) return;  // what is held goes back to the queue with the connection
      batch.swap(deliveries_);
    }
    while (true) {
      try {
        give_back_foreign(batch);
        crash_point("archive.before_insert");
        store(batch);
        crash_point("archive.after_insert");
        if (failing) log_info("archive recovered", {});
        failing = false;
        break;
      } catch (const std::exception& error) {
        if (!failing) log_error("archive failing", {{"error", error.what()}});
        failing = true;
        std::unique_lock lock(mutex_);
        if (arrived_.wait_for(lock, kDatabasePause, [&] { return stopping_; })) return;
      }
    }
    for (const auto& delivery : batch) {
      crash_point("archive.before_ack");
      consumer_->ack(delivery);
    }
  }
}

std::vector<HealthPart> Archive::health() const {
  const auto state = consumer_->state();
  const bool database = database_.usable();
  return {{"database", database, database ? "" : kNoDatabase},
          {"consumer", state.connected, state.fault},
          {"keys", signer_.verdict() != SignerCheck::Verdict::lacks, signer_.fault()}};
}

}  // namespace takt
