#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/amqp/librabbitmq.h"
#include "core/amqp/message.h"
#include "core/text/secret.h"
#include "core/time/time.h"

namespace takt::amqp {

/// The broker cannot be used now; a retry may help.
class BrokerUnavailable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A queue or exchange exists with other properties than Takt's. Says which and how; a retry does not help.
class TopologyMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct BrokerSettings {
  Secret url;           ///< amqp:// or amqps://user:password@host:port/vhost
  std::string ca_file;  ///< PEM, for amqps; empty: /etc/ssl/certs/ca-certificates.crt
  Duration heartbeat = std::chrono::seconds(20);
  Duration connect_timeout = std::chrono::seconds(5);
  Duration rpc_timeout = std::chrono::seconds(10);
  Duration backoff_base = Duration(250);  ///< first pause before reconnecting; doubles, with full jitter
  Duration backoff_max = std::chrono::seconds(5);
  std::string name = "takt";  ///< shown in the broker's connection list

  [[nodiscard]] BrokerSettings clone(const std::string& new_name) const;
};

struct Confirmed {
  std::uint64_t tag;
  bool multiple;
  bool ok;
};
struct Returned {
  std::string message_id;
  std::string exchange;
  std::string routing_key;
  std::string reason;
};
struct Blocked {
  std::optional<std::string> reason;  ///< nullopt: unblocked
};
struct ConsumerCancelled {
  std::string consumer;
};
using Event = std::variant<Delivery, Confirmed, Returned, Blocked, ConsumerCancelled>;

using Arguments = std::vector<std::pair<std::string, std::variant<std::int64_t, std::string>>>;
struct QueueInfo {
  std::uint64_t messages;
  std::uint64_t consumers;
};

/// One AMQP 0-9-1 connection over librabbitmq, with a channel that carries messages and one that declares: what the broker
/// refuses to declare disturbs no consumer and no confirm. Used by one thread only. Every call is bounded by the settings'
/// timeouts and throws BrokerUnavailable when the connection is lost.
class Channel {
 public:
  /// Connects, logs in and opens the channels.
  explicit Channel(const BrokerSettings& settings);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void declare_exchange(const std::string& name, const std::string& type);
  QueueInfo declare_queue(const std::string& name, const Arguments& arguments);
  /// nullopt if there is no such queue.
  std::optional<QueueInfo> inspect_queue(const std::string& name);
  void bind_queue(const std::string& queue, const std::string& exchange, const std::string& key);
  void purge_queue(const std::string& name);
  void delete_queue(const std::string& name);

  /// While one lives, what is sent is gathered into full packets: hundreds of small messages are then a few writes and
  /// a few reads for the broker. See tcp(7), TCP_CORK.
  class Cork {
   public:
    explicit Cork(const Channel& channel);
    ~Cork();
    Cork(const Cork&) = delete;
    Cork& operator=(const Cork&) = delete;

   private:
    int socket_;
  };

  void select_confirms();
  void publish(const Message& message);
  /// Prefetch is per consumer: set before each consume.
  void consume(const std::string& queue, const std::string& consumer, std::uint16_t prefetch);
  void cancel(const std::string& consumer);
  void ack(std::uint64_t tag, bool multiple);
  void reject(std::uint64_t tag, bool requeue);

  /// Handles what has arrived, without waiting; also sends heartbeats that are due. Call it at least twice a
  /// heartbeat interval.
  void process(const std::function<void(Event&&)>& on_event);
  [[nodiscard]] int socket() const;
  /// True if process() has work although the socket is quiet: frames that came in during another call.
  [[nodiscard]] bool has_buffered() const;

 private:
  struct Content;
  void open(const BrokerSettings& settings);
  void login(const BrokerSettings& settings, const amqp_connection_info& info);
  void check(const amqp_rpc_reply_t& reply, const std::string& doing);
  void check_status(int status, const std::string& doing);
  /// Why the broker refused what was asked last, closing the declaring channel, which is open again then; throws what else went wrong.
  std::optional<std::string> reopen_if_refused(const std::string& doing);
  void on_frame(const amqp_frame_t& frame, const std::function<void(Event&&)>& on_event);
  void on_method(const amqp_method_t& method, const std::function<void(Event&&)>& on_event);
  void finish_content(const std::function<void(Event&&)>& on_event);
  std::string channel_close_text(const amqp_rpc_reply_t& reply) const;

  amqp_connection_state_t connection_ = nullptr;
  std::unique_ptr<Content> content_;
  std::string address_;
};

}  // namespace takt::amqp
