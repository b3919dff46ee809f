#include "core/tick/tick_message.h"

#include <stdexcept>

#include "core/amqp/topology.h"
#include "core/tick/tick.h"

namespace takt {

amqp::Message signed_message(const std::string& exchange, const std::string& routing_key, const std::string& id,
                             std::string_view content_type, std::string body, const SigningKeys& keys, Timestamp now) {
  const std::int64_t unix_s = std::chrono::floor<std::chrono::seconds>(now).time_since_epoch().count();
  amqp::Message message{exchange, routing_key, std::string(content_type), id, {}, std::move(body)};
  message.headers = {
      {"webhook-id", id}, {"webhook-timestamp", std::to_string(unix_s)}, {"webhook-signature", keys.sign(id, unix_s, message.body)}};
  return message;
}

std::optional<amqp::Message> tick_message(const TickRow& tick, const KeyRing& keys, Timestamp now) {
  v1::JobTick message;
  message.set_id(tick.id);
  message.set_job(tick.job);
  set_timestamp(*message.mutable_due_at(), tick.due_at);
  message.set_batch_size(tick.batch_size);
  message.set_dry_run(tick.dry_run);
  if (!tick.items.empty()) {
    auto carried = tick_from_json("{\"items\":" + tick.items + "}");
    if (!std::holds_alternative<v1::JobTick>(carried)) return std::nullopt;
    message.mutable_items()->Swap(std::get<v1::JobTick>(carried).mutable_items());
  }
  auto body = message.SerializeAsString();
  if (body.size() > kMaxTickBytes) return std::nullopt;
  return signed_message(amqp::kTicksExchange, tick.queue, tick.id, kProtobufType, std::move(body), keys.ticks(), now);
}

std::optional<amqp::Message> wake_message(const TickRow& tick, const KeyRing& keys, Timestamp now) {
  auto message = tick_message(tick, keys, now);
  if (message) {
    message->exchange = amqp::kWakesExchange;
    message->persistent = false;
    message->detour = amqp::kTicksExchange;
  }
  return message;
}

std::optional<std::string> dead_letter_body(std::string_view rest, std::string_view payload) {
  v1::DeadLetter letter;
  if (!message_from_json(rest, letter)) return std::nullopt;
  letter.set_payload_json(std::string(payload));
  return letter.SerializeAsString();
}

amqp::Message dead_letter_message(const std::string& id, std::string_view content_type, std::string body, const KeyRing& keys,
                                  Timestamp now) {
  return signed_message(amqp::kDeadExchange, "", id, content_type, std::move(body), keys.letters(), now);
}

}  // namespace takt
