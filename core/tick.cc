#include "core/tick.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <charconv>

namespace takt {

namespace {

constexpr Duration kMaxFuture = std::chrono::minutes(5);
constexpr int kMaxPriority = 100;
// Sanity bounds that keep arithmetic on untrusted times from overflowing.
constexpr std::int64_t kMaxUnixSeconds = 253'402'300'799;  // 9999-12-31

bool timestamp_in_range(const google::protobuf::Timestamp& time) {
  return time.seconds() >= 0 && time.seconds() <= kMaxUnixSeconds && time.nanos() >= 0 && time.nanos() < 1'000'000'000;
}

bool has_nul(const std::string& text) { return text.find('\0') != std::string::npos; }

/// True if a text in it holds U+0000, which PostgreSQL's jsonb cannot. Protobuf's parsers bound the depth (100).
bool holds_nul(const google::protobuf::Value& value) {
  switch (value.kind_case()) {
    case google::protobuf::Value::kStringValue: return has_nul(value.string_value());
    case google::protobuf::Value::kListValue:
      return std::any_of(value.list_value().values().begin(), value.list_value().values().end(), holds_nul);
    case google::protobuf::Value::kStructValue:
      return std::any_of(value.struct_value().fields().begin(), value.struct_value().fields().end(),
                         [](const auto& field) { return has_nul(field.first) || holds_nul(field.second); });
    default: return false;
  }
}

bool within_limits(const v1::JobTick& tick) {
  if (tick.id().empty() || tick.id().size() > kMaxTickIdBytes || !is_name(tick.job())) return false;
  if (tick.items_size() > kMaxTickItems) return false;
  if (tick.has_due_at() && !timestamp_in_range(tick.due_at())) return false;
  for (const auto& item : tick.items()) {
    if (item.key().size() > kMaxKeyCharacters || has_nul(item.key())) return false;
    if (item.priority() < -kMaxPriority || item.priority() > kMaxPriority) return false;
    if (item.has_run_at() && !timestamp_in_range(item.run_at())) return false;
    if (item.payload().ByteSizeLong() > kMaxPayloadBytes || holds_nul(item.payload())) return false;
  }
  return tick.id().find_first_of(std::string_view("\0\r\n", 3)) == std::string::npos;
}

}  // namespace

std::string_view to_string(RejectReason reason) {
  switch (reason) {
    case RejectReason::oversized: return "oversized";
    case RejectReason::missing_header: return "missing_header";
    case RejectReason::malformed_timestamp: return "malformed_timestamp";
    case RejectReason::future_dated: return "future_dated";
    case RejectReason::stale: return "stale";
    case RejectReason::bad_signature: return "bad_signature";
    case RejectReason::bad_content_type: return "bad_content_type";
    case RejectReason::malformed_body: return "malformed_body";
    case RejectReason::id_mismatch: return "id_mismatch";
    case RejectReason::field_limit: return "field_limit";
  }
  return "?";
}

bool is_name(std::string_view text) {
  const auto alphanumeric = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (text.empty() || text.size() > 100 || !alphanumeric(text[0])) return false;
  for (const char c : text) {
    if (!alphanumeric(c) && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

std::variant<v1::JobTick, RejectReason> verify_tick(const TickMessage& message, const KeyRing& keys, Timestamp now, Duration max_tick_age) {
  if (message.body_size > kMaxTickBytes || message.body.size() != message.body_size) return RejectReason::oversized;
  if (!message.id || !message.timestamp || !message.signature || message.id->empty()) return RejectReason::missing_header;
  std::int64_t unix_s = 0;
  const auto& stamp = *message.timestamp;
  const auto [end, error] = std::from_chars(stamp.data(), stamp.data() + stamp.size(), unix_s);
  if (error != std::errc{} || end != stamp.data() + stamp.size() || unix_s < 0 || unix_s > kMaxUnixSeconds) {
    return RejectReason::malformed_timestamp;
  }
  const Timestamp signed_at{std::chrono::seconds(unix_s)};
  if (signed_at > now + kMaxFuture) return RejectReason::future_dated;
  if (signed_at < now - max_tick_age) return RejectReason::stale;
  if (!keys.ticks().verify(*message.id, stamp, message.body, *message.signature, now)) return RejectReason::bad_signature;

  v1::JobTick tick;
  const auto type = message.content_type.substr(0, message.content_type.find(';'));
  if (type == kProtobufType) {
    if (!tick.ParseFromArray(message.body.data(), static_cast<int>(message.body.size()))) return RejectReason::malformed_body;
  } else if (type == kJsonType) {
    if (!message_from_json(message.body, tick)) return RejectReason::malformed_body;
  } else {
    return RejectReason::bad_content_type;
  }
  if (tick.id() != *message.id) return RejectReason::id_mismatch;
  if (!within_limits(tick)) return RejectReason::field_limit;
  if (!tick.has_due_at()) set_timestamp(*tick.mutable_due_at(), signed_at);
  return tick;
}

std::string message_to_json(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = false;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return "{}";
  return text;
}

bool message_from_json(std::string_view text, google::protobuf::Message& message) {
  const google::protobuf::util::JsonParseOptions options;  // unknown fields are refused
  return google::protobuf::util::JsonStringToMessage(std::string(text), &message, options).ok();
}

std::string to_json(const google::protobuf::Value& value) {
  return value.kind_case() == google::protobuf::Value::KIND_NOT_SET ? "{}" : message_to_json(value);
}

bool from_json(std::string_view text, google::protobuf::Value& value) { return message_from_json(text, value); }

void set_timestamp(google::protobuf::Timestamp& field, Timestamp time) {
  const std::int64_t us = to_unix_us(time);
  field.set_seconds(us / 1'000'000);
  field.set_nanos(static_cast<std::int32_t>(us % 1'000'000 * 1000));
}

Timestamp get_timestamp(const google::protobuf::Timestamp& field) {
  return from_unix_us(field.seconds() * 1'000'000 + field.nanos() / 1000);
}

}  // namespace takt
