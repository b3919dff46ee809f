#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "core/amqp/publisher.h"
#include "core/tick/signing.h"
#include "core/time/time.h"

namespace takt {

/// A row of takt.ticks as far as its message needs it.
struct TickRow {
  std::string id;
  std::string job;
  std::string queue;
  std::string source;
  Timestamp due_at;
  std::string items;    ///< JSON array of takt.v1.NewItem, or empty
  Timestamp fire_at{};  ///< its message leaves then, not before: a slot and its jitter; by default at once
  std::uint32_t batch_size = 0;
  bool dry_run = false;
};

/// A message with the three Standard Webhooks headers over its body.
amqp::Message signed_message(const std::string& exchange, const std::string& routing_key, const std::string& id,
                             std::string_view content_type, std::string body, const SigningKeys& keys, Timestamp now);

/// The signed message of a tick, for the exchange takt.ticks. nullopt: its items are beyond what a tick carries (core/tick/tick.h).
std::optional<amqp::Message> tick_message(const TickRow& tick, const KeyRing& keys, Timestamp now);

/// The signed message of a tick that only wakes a job, for the exchange takt.wakes: lost, it costs time and nothing else. Where no
/// worker consumes wake ticks, it goes through takt.ticks.
std::optional<amqp::Message> wake_message(const TickRow& tick, const KeyRing& keys, Timestamp now);

/// A takt.v1.DeadLetter as protobuf, from the JSON of everything but its payload, and the payload's own text, which is carried
/// as it is. nullopt: `rest` is no letter.
std::optional<std::string> dead_letter_body(std::string_view rest, std::string_view payload);

/// The signed message of a dead letter, for the exchange takt.dlx. `body` is a takt.v1.DeadLetter in `content_type`.
/// Signed with the key for letters, since the archive's entries can be replayed: what is not Takt's own must not become work.
amqp::Message dead_letter_message(const std::string& id, std::string_view content_type, std::string body, const KeyRing& keys,
                                  Timestamp now);

}  // namespace takt
