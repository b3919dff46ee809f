#pragma once
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>

namespace takt::amqp {

struct Message {
  std::string exchange;
  std::string routing_key;
  std::string content_type;
  std::string message_id;
  std::map<std::string, std::string> headers;
  std::string body;
  bool persistent = true;
  /// An exchange that this message goes through where `exchange` does not take it at once (publisher.h): persistent then.
  std::string detour = {};
};

/// A message that a queue delivered. `epoch` and `tag` name it for acknowledging; a tag of an earlier connection is
/// recognised by its epoch and ignored, since the broker has requeued that message.
struct Delivery {
  std::uint64_t epoch = 0;
  std::uint64_t tag = 0;
  bool redelivered = false;
  std::string consumer;  ///< its tag
  std::string exchange;
  std::string routing_key;
  std::string content_type;
  std::string message_id;
  nlohmann::json headers = nlohmann::json::object();
  std::string body;             ///< at most kMaxBodyBytes; a longer body is cut
  std::uint64_t body_size = 0;  ///< as announced

  /// A header as text (numbers are written in decimal); nullopt if absent or of another type.
  [[nodiscard]] std::optional<std::string> header(const std::string& name) const;
  /// How often a quorum queue had it back (x-delivery-count); 0 at the first delivery.
  [[nodiscard]] std::int64_t times_returned() const;
};

/// A tick's 1 MiB and room for the letter that it may become, and to see that a body is too long. What a consumer holds is
/// bounded by prefetch × this.
constexpr std::size_t kMaxBodyBytes = 1024 * 1024 + 64 * 1024;

}  // namespace takt::amqp
