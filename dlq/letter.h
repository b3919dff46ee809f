#pragma once
#include <optional>
#include <string>

#include "core/amqp/message.h"
#include "core/tick/signing.h"
#include "core/time/time.h"

namespace takt {

/// A row of takt.dead_letters to be.
struct Letter {
  std::string id;
  std::string kind;  ///< item, tick, message
  std::string job;
  std::string reason;
  std::string error;
  std::optional<std::int64_t> item_id;
  std::optional<std::string> key;
  int priority = 0;
  std::optional<std::string> payload;  ///< JSON
  int attempts = 0;
  std::optional<std::string> body;     ///< raw bytes of a message
  std::optional<std::string> headers;  ///< JSON, without signatures
  std::optional<std::string> x_death;  ///< JSON
  Timestamp died_at{};
  bool genuine = true;  ///< Takt signed it; of what nobody signed the archive keeps kMostUnsigned (dlq/store.h)
};

/// Whether a key of the ring confirms its signature, as a letter or as a tick.
bool is_takts(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now);

/// What a delivery from takt.dead is. Pure. Never fails: what is not understood is kept as a message. A letter or tick
/// whose signature no key of the ring confirms is kept as a message, too, so that it can never be replayed into work.
Letter read_letter(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now);

/// The delivery as bytes alone, for one that PostgreSQL refused otherwise: nothing in it can be refused.
Letter as_message(const amqp::Delivery& delivery, Timestamp now, const std::string& why);

}  // namespace takt
