#include "dlq/letter.h"

#include <openssl/evp.h>
#include <charconv>

#include <array>

#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "core/tick/tick.h"

namespace takt {

namespace {

constexpr std::size_t kMaxErrorBytes = 4096;
constexpr std::size_t kMaxNameBytes = 255;
constexpr std::size_t kMaxLetterIdBytes = 300;
constexpr int kMaxPriority = 100;
constexpr std::uint32_t kMostAttempts = 1'000'000'000;
constexpr std::int64_t kMaxUnixSeconds = 253'402'300'799;  // 9999-12-31

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

bool parse(const amqp::Delivery& delivery, v1::DeadLetter& letter) {
  if (delivery.content_type == kProtobufType) return letter.ParseFromString(delivery.body);
  return delivery.content_type == kJsonType && message_from_json(delivery.body, letter);  // as the version before wrote it
}

bool parse(const amqp::Delivery& delivery, v1::JobTick& tick) {
  if (delivery.content_type == kProtobufType) return tick.ParseFromString(delivery.body);
  if (delivery.content_type != kJsonType) return false;
  auto read = tick_from_json(delivery.body);
  if (!std::holds_alternative<v1::JobTick>(read)) return false;
  tick = std::get<v1::JobTick>(std::move(read));
  return true;
}

/// Bytes that are not UTF-8 become the replacement character: a header may hold anything.
std::string lenient_json(const nlohmann::json& value) { return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

/// A text of what RabbitMQ says; anybody who may publish to the exchange can put something else in its place.
std::string text_in(const nlohmann::json& object, const char* key, const char* otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? printable(found->get<std::string>(), kMaxNameBytes) : otherwise;
}

/// JSON that PostgreSQL's jsonb can hold, which has no U+0000; headers and deaths may hold anything.
std::optional<std::string> storable_json(const std::string& json) {
  auto exact = exact_json(json, kMaxTickBytes);
  if (auto* text = std::get_if<std::string>(&exact)) return std::move(*text);
  return std::nullopt;
}

std::string payload_of(const v1::DeadLetter& letter) {
  return letter.payload_json().empty() ? to_json(letter.payload()) : letter.payload_json();
}

/// What is wrong with a genuine letter, in words; nothing if it can be stored. Limits as for ticks (core/tick/tick.cc), but for an
/// item's payload, which was in PostgreSQL before: its size, depth and numbers are judged there.
/// As takt.dead_letter_id() makes it: "item-ITEM-REPLAY". A replay reads the latter there.
bool is_item_letter_id(std::string_view id, std::int64_t item) {
  const std::string start = "item-" + std::to_string(item) + "-";
  if (!id.starts_with(start)) return false;
  id.remove_prefix(start.size());
  std::int16_t replay = -1;
  const auto got = std::from_chars(id.data(), id.data() + id.size(), replay);
  return got.ec == std::errc{} && got.ptr == id.data() + id.size() && replay >= 0;
}

std::optional<std::string> fault_of(const v1::DeadLetter& letter) {
  const auto has_nul = [](const std::string& text) { return text.find('\0') != std::string::npos; };
  for (const auto* text : {&letter.id(), &letter.job(), &letter.reason(), &letter.error(), &letter.key()}) {
    if (has_nul(*text)) return "a text in it holds NUL";
  }
  if (letter.id().size() > kMaxLetterIdBytes) return "its id is longer than 300 bytes";
  if (!is_name(letter.job())) return "its job is no name";
  if (letter.reason().size() > kMaxNameBytes) return "its reason is longer than 255 bytes";
  if (letter.key().size() > 4 * kMaxKeyCharacters) return "its key is longer than 512 characters";
  if (letter.priority() < -kMaxPriority || letter.priority() > kMaxPriority) return "its priority is outside -100 to 100";
  if (letter.attempts() > kMostAttempts) return "its attempts are beyond counting";
  if (letter.died_at().seconds() < 0 || letter.died_at().seconds() > kMaxUnixSeconds) return "its time of death is no time";
  if (letter.kind() != v1::DeadLetter::KIND_ITEM) {
    return within_limits(letter.tick()) ? std::nullopt : std::optional("the tick in it is beyond a tick's limits");
  }
  if (letter.item_id() <= 0) return "it names no item";
  if (!is_item_letter_id(letter.id(), letter.item_id())) return "its id is not made of its item's and how often it was replayed";
  if (json_refusal(payload_of(letter))) return "its payload is no JSON that PostgreSQL holds";
  return std::nullopt;
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
    result.payload = payload_of(letter);
  } else {
    result.kind = "tick";
    result.payload = tick_to_json(letter.tick());
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

Letter as_message(const amqp::Delivery& delivery, Timestamp now, const std::string& why) {
  Letter letter;
  letter.kind = "message";
  letter.died_at = now;
  letter.id = "message-" + digest_of(delivery.body);
  letter.reason = "refused";
  letter.error = printable("PostgreSQL refused it as a letter: " + why, kMaxErrorBytes);
  letter.body = delivery.body;
  return letter;
}

bool is_takts(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now) {
  return signed_as(delivery, keys, now) != Signed::not_by_takt;
}

Letter read_letter(const amqp::Delivery& delivery, const KeyRing& keys, Timestamp now) {
  const auto how = signed_as(delivery, keys, now);
  const std::string id = delivery.header("webhook-id").value_or("");
  std::optional<std::string> fault;
  if (how == Signed::as_letter) {
    v1::DeadLetter letter;
    if (parse(delivery, letter) && !letter.id().empty() && letter.id() == id) {
      fault = fault_of(letter);
      if (!fault) return from_dead_letter(letter);
    }
  }

  Letter letter;
  letter.kind = "message";
  letter.genuine = how != Signed::not_by_takt;
  letter.died_at = now;
  letter.id = "message-" + (id.empty() ? "" : printable(id, kMaxTickIdBytes) + "-") + digest_of(delivery.body);
  std::string queue;
  letter.reason = death_reason(delivery.headers, queue);
  letter.error = "RabbitMQ dead-lettered it" + (queue.empty() ? "" : " from " + queue) + ": " + letter.reason;
  v1::JobTick tick;
  if (how == Signed::as_tick && parse(delivery, tick) && tick.id() == id) {
    if (within_limits(tick)) {
      letter.kind = "tick";
      letter.id = "broker-" + tick.id();
      letter.job = tick.job();
      letter.payload = tick_to_json(tick);
    } else {
      fault = "it is beyond a tick's limits";
    }
  } else if (how == Signed::not_by_takt) {
    letter.error += "; its signature is not Takt's, so it cannot be replayed";
  }
  if (fault) letter.error += "; it is Takt's, but " + *fault;
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
