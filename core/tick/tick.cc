#include "core/tick/tick.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <charconv>

#include "core/text/exact_json.h"

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

/// PostgreSQL can hold it, and prints it in no more than the limit.
bool is_storable(const v1::NewItem& item) {
  if (item.has_payload() && !item.payload_json().empty()) return false;
  const auto text = payload_text(item);
  return text && std::holds_alternative<std::string>(exact_json(*text, kMaxPayloadBytes));
}

}  // namespace

bool within_limits(const v1::JobTick& tick) {
  if (tick.id().empty() || tick.id().size() > kMaxTickIdBytes || !is_name(tick.job())) return false;
  if (tick.items_size() > kMaxTickItems) return false;
  if (tick.has_due_at() && !timestamp_in_range(tick.due_at())) return false;
  for (const auto& item : tick.items()) {
    if (item.key().size() > kMaxKeyCharacters || has_nul(item.key())) return false;
    if (item.priority() < -kMaxPriority || item.priority() > kMaxPriority) return false;
    if (item.has_run_at() && !timestamp_in_range(item.run_at())) return false;
    if (!is_storable(item)) return false;
  }
  return tick.id().find_first_of(std::string_view("\0\r\n", 3)) == std::string::npos;
}

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
    auto read = tick_from_json(message.body);
    if (const auto* reason = std::get_if<RejectReason>(&read)) return *reason;
    tick = std::get<v1::JobTick>(std::move(read));
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

std::optional<std::string> payload_text(const v1::NewItem& item) {
  if (!item.payload_json().empty()) return item.payload_json();
  if (item.payload().kind_case() == google::protobuf::Value::KIND_NOT_SET) return "{}";
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(item.payload(), &text).ok()) return std::nullopt;
  return text;
}

std::variant<v1::JobTick, RejectReason> tick_from_json(std::string_view text) {
  const auto exact = with_exact_payloads(text, kMaxPayloadBytes);
  if (const auto* fault = std::get_if<JsonFault>(&exact)) {
    return *fault == JsonFault::limit ? RejectReason::field_limit : RejectReason::malformed_body;
  }
  v1::JobTick tick;
  if (!message_from_json(std::get<std::string>(exact), tick)) return RejectReason::malformed_body;
  return tick;
}

std::string items_to_json(const v1::JobTick& tick) {
  std::string items = "[";
  for (const auto& item : tick.items()) {
    v1::NewItem rest = item;
    rest.clear_payload();
    rest.clear_payload_json();
    const std::string others = message_to_json(rest);  // {} or {"key":…}
    if (items.size() > 1) items += ',';
    items += "{\"payload\":" + payload_text(item).value_or("{}") + (others.size() > 2 ? "," : "") + others.substr(1);
  }
  return items + "]";
}

std::string tick_to_json(const v1::JobTick& tick) {
  v1::JobTick head = tick;
  head.clear_items();
  std::string text = message_to_json(head);
  if (tick.items().empty()) return text;
  text.pop_back();
  return text + (text.size() > 1 ? ",\"items\":" : "\"items\":") + items_to_json(tick) + "}";
}

void set_timestamp(google::protobuf::Timestamp& field, Timestamp time) {
  const std::int64_t us = to_unix_us(time);
  field.set_seconds(us / 1'000'000);
  field.set_nanos(static_cast<std::int32_t>(us % 1'000'000 * 1000));
}

Timestamp get_timestamp(const google::protobuf::Timestamp& field) {
  return from_unix_us(field.seconds() * 1'000'000 + field.nanos() / 1000);
}

}  // namespace takt
