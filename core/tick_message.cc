#include "core/tick_message.h"

#include <nlohmann/json.hpp>

#include "core/amqp/topology.h"
#include "core/tick.h"

namespace takt {

amqp::Message signed_message(const std::string& exchange, const std::string& routing_key, const std::string& id,
                             std::string_view content_type, std::string body, const SigningKeys& keys, Timestamp now) {
  const std::int64_t unix_s = std::chrono::floor<std::chrono::seconds>(now).time_since_epoch().count();
  amqp::Message message{exchange, routing_key, std::string(content_type), id, {}, std::move(body)};
  message.headers = {
      {"webhook-id", id}, {"webhook-timestamp", std::to_string(unix_s)}, {"webhook-signature", keys.sign(id, unix_s, message.body)}};
  return message;
}

amqp::Message tick_message(const TickRow& tick, const KeyRing& keys, Timestamp now) {
  v1::JobTick message;
  message.set_id(tick.id);
  message.set_job(tick.job);
  set_timestamp(*message.mutable_due_at(), tick.due_at);
  if (!tick.items.empty()) {
    for (const auto& item : nlohmann::json::parse(tick.items)) {
      message_from_json(item.dump(), *message.add_items());
    }
  }
  return signed_message(amqp::kTicksExchange, tick.queue, tick.id, kProtobufType, message.SerializeAsString(), keys.ticks(), now);
}

amqp::Message dead_letter_message(const std::string& id, std::string_view content_type, std::string body, const KeyRing& keys,
                                  Timestamp now) {
  return signed_message(amqp::kDeadExchange, "", id, content_type, std::move(body), keys.letters(), now);
}

}  // namespace takt
