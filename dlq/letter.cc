#include "dlq/letter.h"

#include <openssl/evp.h>

#include <array>

#include "core/text.h"
#include "core/tick.h"

namespace takt {

namespace {

constexpr std::size_t kMaxErrorBytes = 4096;
constexpr std::size_t kMaxNameBytes = 255;

std::string digest_of(const std::string& bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr);
  return to_hex({reinterpret_cast<const char*>(digest.data()), 16});
}

/// What a delivery's signature makes it. The key alone says so: each kind has its own, and no header that anybody may set has a say.
enum class Signed { as_letter, as_tick, not_by_takt };

Signed signed_as(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now) {
  const auto id = delivery.header("webhook-id");
  const auto timestamp = delivery.header("webhook-timestamp");
  const auto signature = delivery.header("webhook-signature");
  if (!id || !timestamp || !signature || delivery.body.size() != delivery.body_size) return Signed::not_by_takt;
  if (keys.letters().verify(*id, *timestamp, delivery.body, *signature, now)) return Signed::as_letter;
  if (keys.ticks().verify(*id, *timestamp, delivery.body, *signature, now)) return Signed::as_tick;
  return Signed::not_by_takt;
}

template <typename Message>
bool parse(const amqp::Delivery& delivery, Message& message) {
  if (delivery.content_type == kProtobufType) return message.ParseFromString(delivery.body);
  if (delivery.content_type == kJsonType) return message_from_json(delivery.body, message);
  return false;
}

/// Bytes that are not UTF-8 become the replacement character: a header may hold anything.
std::string lenient_json(const nlohmann::json& value) { return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

/// A text of what RabbitMQ says; anybody who may publish to the exchange can put something else in its place.
std::string text_in(const nlohmann::json& object, const char* key, const char* otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? printable(found->get<std::string>(), kMaxNameBytes) : otherwise;
}

/// PostgreSQL's jsonb holds no NUL.
std::optional<std::string> storable_json(std::string json) {
  if (json.find("\\u0000") != std::string::npos) return std::nullopt;
  return json;
}

Letter from_dead_letter(const v1::DeadLetter& letter) {
  Letter result;
  result.id = letter.id();
  result.job = letter.job();
  result.reason = letter.reason();
  result.error = printable(letter.error(), kMaxErrorBytes);
  result.attempts = static_cast<int>(letter.attempts());
  result.died_at = get_timestamp(letter.died_at());
  if (letter.kind() == v1::DeadLetter::KIND_ITEM) {
    result.kind = "item";
    result.item_id = letter.item_id();
    if (!letter.key().empty()) result.key = letter.key();
    result.priority = letter.priority();
    result.payload = storable_json(to_json(letter.payload()));
  } else {
    result.kind = "tick";
    result.payload = storable_json(message_to_json(letter.tick()));
  }
  return result;
}

/// What RabbitMQ says of the latest death: "delivery_limit in takt.ticks.default".
std::string death_reason(const nlohmann::json& headers, std::string& queue) {
  const auto deaths = headers.find("x-death");
  if (deaths == headers.end() || !deaths->is_array() || deaths->empty() || !deaths->front().is_object()) return "unknown";
  const auto& latest = deaths->front();
  queue = text_in(latest, "queue", "");
  return text_in(latest, "reason", "unknown");
}

}  // namespace

Letter read_letter(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now) {
  const auto how = signed_as(delivery, keys, now);
  const std::string id = delivery.header("webhook-id").value_or("");
  if (how == Signed::as_letter) {
    v1::DeadLetter letter;
    if (parse(delivery, letter) && !letter.id().empty() && letter.id() == id) return from_dead_letter(letter);
  }

  Letter letter;
  letter.kind = "message";
  letter.died_at = now;
  letter.id = "message-" + (id.empty() ? "" : printable(id, kMaxTickIdBytes) + "-") + digest_of(delivery.body);
  std::string queue;
  letter.reason = death_reason(delivery.headers, queue);
  letter.error = "RabbitMQ dead-lettered it" + (queue.empty() ? "" : " from " + queue) + ": " + letter.reason;
  v1::JobTick tick;
  if (how == Signed::as_tick && parse(delivery, tick) && tick.id() == id && is_name(tick.job())) {
    letter.kind = "tick";
    letter.id = "broker-" + tick.id();
    letter.job = tick.job();
    letter.payload = storable_json(message_to_json(tick));
  } else if (how == Signed::not_by_takt) {
    letter.error += "; its signature is not Takt's, so it cannot be replayed";
  }
  letter.body = delivery.body;
  auto headers = delivery.headers;
  if (const auto deaths = headers.find("x-death"); deaths != headers.end()) letter.x_death = storable_json(lenient_json(*deaths));
  headers.erase("x-death");
  headers.erase("webhook-signature");
  headers["content_type"] = printable(delivery.content_type, 100);
  letter.headers = storable_json(lenient_json(headers));
  return letter;
}

}  // namespace takt
