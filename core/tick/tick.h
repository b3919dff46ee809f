#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "core/tick/signing.h"
#include "core/time/time.h"
#include "takt/v1/takt.pb.h"

namespace takt {

constexpr std::size_t kMaxTickBytes = 1024 * 1024;
constexpr int kMaxTickItems = 1000;
constexpr std::size_t kMaxTickIdBytes = 256;
constexpr std::size_t kMaxKeyCharacters = 512;
constexpr std::size_t kMaxPayloadBytes = 512 * 1024;
constexpr std::string_view kProtobufType = "application/x-protobuf";
constexpr std::string_view kJsonType = "application/json";

/// What of an AMQP message verification looks at. Views into the delivery; valid as long as it is.
struct TickMessage {
  std::string_view body;
  std::size_t body_size;  // as announced; larger than body.size() if the body was cut while reading
  std::string_view content_type;
  std::optional<std::string_view> id;
  std::optional<std::string_view> timestamp;
  std::optional<std::string_view> signature;
};

/// Why a message was refused; each is one metric label and one word in the quarantine's headers.
enum class RejectReason {
  oversized,
  missing_header,
  malformed_timestamp,
  future_dated,
  stale,
  bad_signature,
  bad_content_type,
  malformed_body,
  id_mismatch,
  field_limit,
};
constexpr int kRejectReasons = 10;
std::string_view to_string(RejectReason reason);

/// Judges a message: size, headers, timestamp, HMAC, decoding, id, field limits, in that order, so that nothing is
/// parsed before it is known to be genuine. Pure. (That the job is known is the caller's to check.)
std::variant<v1::JobTick, RejectReason> verify_tick(const TickMessage& message, const KeyRing& keys, Timestamp now, Duration max_tick_age);

/// An item's payload as JSON text, exact if it came so; "{}" if unset. nullopt: a number in it is none (NaN, infinity).
std::optional<std::string> payload_text(const v1::NewItem& item);
/// A tick from JSON, its items' payloads exact (core/text/exact_json.h).
std::variant<v1::JobTick, RejectReason> tick_from_json(std::string_view text);
/// A tick as JSON, its items' payloads as they are, to the last digit; and the array of its items alone.
std::string tick_to_json(const v1::JobTick& tick);
std::string items_to_json(const v1::JobTick& tick);

/// JSON of a google.protobuf.Value ("{}" if unset).
std::string to_json(const google::protobuf::Value& value);
std::string message_to_json(const google::protobuf::Message& message);
bool message_from_json(std::string_view text, google::protobuf::Message& message);

/// Whether a tick's fields are such that it may be carried, stored and replayed; verify_tick() has seen to it. Pure.
bool within_limits(const v1::JobTick& tick);

void set_timestamp(google::protobuf::Timestamp& field, Timestamp time);
Timestamp get_timestamp(const google::protobuf::Timestamp& field);

/// "[a-z0-9][a-z0-9._-]{0,99}": names of jobs, schedules and queues.
bool is_name(std::string_view text);

}  // namespace takt
