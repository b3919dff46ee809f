#include "core/amqp/channel.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cctype>

#include "core/amqp/table.h"
#include "core/text/text.h"

namespace takt::amqp {

namespace {

constexpr amqp_channel_t kChannel = 1;
// A declaration that the broker refuses closes its channel, and must not take consumers or confirms with it.
constexpr amqp_channel_t kDeclaring = 2;
constexpr int kFrameMax = 131072;
constexpr auto kSystemCertificates = "/etc/ssl/certs/ca-certificates.crt";

timeval to_timeval(Duration duration) { return {duration.count() / 1000, static_cast<suseconds_t>(duration.count() % 1000 * 1000)}; }

amqp_bytes_t bytes_of(std::string_view text) {
  return {text.size(), const_cast<char*>(text.data())};  // librabbitmq only reads it
}

std::string text_of(const amqp_bytes_t& bytes) { return {static_cast<const char*>(bytes.bytes), bytes.len}; }

}  // namespace

/// A message whose frames are still coming in.
struct Channel::Content {
  bool returned = false;
  std::string return_reason;
  Delivery delivery;
  std::uint64_t received = 0;
};

BrokerSettings BrokerSettings::clone(const std::string& new_name) const {
  BrokerSettings copy;
  copy.url = url.clone();
  copy.ca_file = ca_file;
  copy.heartbeat = heartbeat;
  copy.connect_timeout = connect_timeout;
  copy.rpc_timeout = rpc_timeout;
  copy.backoff_base = backoff_base;
  copy.backoff_max = backoff_max;
  copy.name = new_name;
  return copy;
}

std::optional<std::string> Delivery::header(const std::string& name) const {
  const auto found = headers.find(name);
  if (found == headers.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number_integer()) return std::to_string(found->get<std::int64_t>());
  return std::nullopt;
}

std::int64_t Delivery::times_returned() const {
  const auto found = headers.find("x-delivery-count");
  return found != headers.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

Channel::Channel(const BrokerSettings& settings) {
  connection_ = amqp_new_connection();
  if (connection_ == nullptr) throw std::bad_alloc();
  try {
    open(settings);
  } catch (...) {
    amqp_destroy_connection(connection_);
    throw;
  }
}

Channel::~Channel() {
  const timeval brief = to_timeval(std::chrono::seconds(1));
  amqp_set_rpc_timeout(connection_, &brief);
  amqp_connection_close(connection_, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection_);
}

void Channel::open(const BrokerSettings& settings) {
  struct Wiped {
    std::string text;
    ~Wiped() { wipe(text); }
  } url{settings.url.reveal()};
  amqp_connection_info info;  // points into url
  amqp_default_connection_info(&info);
  if (amqp_parse_url(url.text.data(), &info) != AMQP_STATUS_OK) {
    throw BrokerUnavailable("broker: the URL is not understood; give amqp://user:password@host:port/vhost");
  }
  address_ = std::string(info.host) + ":" + std::to_string(info.port);

  amqp_socket_t* socket = info.ssl != 0 ? amqp_ssl_socket_new(connection_) : amqp_tcp_socket_new(connection_);
  if (socket == nullptr) throw BrokerUnavailable("broker: no socket could be made");
  if (info.ssl != 0) {
    const std::string& ca = settings.ca_file.empty() ? kSystemCertificates : settings.ca_file;
    check_status(amqp_ssl_socket_set_cacert(socket, ca.c_str()), "reading certificates from " + ca);
    amqp_ssl_socket_set_verify_peer(socket, 1);
    amqp_ssl_socket_set_verify_hostname(socket, 1);
    check_status(amqp_ssl_socket_set_ssl_versions(socket, AMQP_TLSv1_2, AMQP_TLSvLATEST), "setting TLS versions");
  }
  const timeval connect_timeout = to_timeval(settings.connect_timeout);
  const timeval rpc_timeout = to_timeval(settings.rpc_timeout);
  amqp_set_handshake_timeout(connection_, &connect_timeout);
  check_status(amqp_socket_open_noblock(socket, info.host, info.port, &connect_timeout), "connecting");
  login(settings, info);
  amqp_set_rpc_timeout(connection_, &rpc_timeout);
  for (const auto channel : {kChannel, kDeclaring}) {
    amqp_channel_open(connection_, channel);
    check(amqp_get_rpc_reply(connection_), "opening a channel");
  }
}

void Channel::login(const BrokerSettings& settings, const amqp_connection_info& info) {
  const auto flag = [](const char* key) {
    amqp_table_entry_t entry{bytes_of(key), {}};
    entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
    entry.value.value.boolean = 1;
    return entry;
  };
  std::array<amqp_table_entry_t, 2> capabilities{flag("connection.blocked"), flag("consumer_cancel_notify")};
  std::array<amqp_table_entry_t, 2> properties{};
  properties[0].key = bytes_of("connection_name");
  properties[0].value.kind = AMQP_FIELD_KIND_UTF8;
  properties[0].value.value.bytes = bytes_of(settings.name);
  properties[1].key = bytes_of("capabilities");
  properties[1].value.kind = AMQP_FIELD_KIND_TABLE;
  properties[1].value.value.table = {static_cast<int>(capabilities.size()), capabilities.data()};
  const amqp_table_t property_table{static_cast<int>(properties.size()), properties.data()};
  const auto heartbeat_s = static_cast<int>(std::max<std::int64_t>(1, settings.heartbeat.count() / 1000));
  check(amqp_login_with_properties(connection_, info.vhost, kDeclaring, kFrameMax, heartbeat_s, &property_table, AMQP_SASL_METHOD_PLAIN,
                                   info.user, info.password),
        "logging in");
}

void Channel::check_status(int status, const std::string& doing) {
  if (status == AMQP_STATUS_OK) return;
  throw BrokerUnavailable("broker " + address_ + ": " + doing + ": " + amqp_error_string2(status));
}

std::string Channel::channel_close_text(const amqp_rpc_reply_t& reply) const {
  const auto* close = static_cast<const amqp_channel_close_t*>(reply.reply.decoded);
  return printable(text_of(close->reply_text), 500);
}

void Channel::check(const amqp_rpc_reply_t& reply, const std::string& doing) {
  switch (reply.reply_type) {
    case AMQP_RESPONSE_NORMAL: return;
    case AMQP_RESPONSE_NONE: throw BrokerUnavailable("broker " + address_ + ": " + doing + ": the connection was closed");
    case AMQP_RESPONSE_LIBRARY_EXCEPTION: check_status(reply.library_error, doing); return;
    case AMQP_RESPONSE_SERVER_EXCEPTION: break;
  }
  std::string why = "refused";
  if (reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
    why = printable(text_of(static_cast<const amqp_connection_close_t*>(reply.reply.decoded)->reply_text), 500);
  } else if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
    why = channel_close_text(reply);
  }
  throw BrokerUnavailable("broker " + address_ + ": " + doing + ": " + why);
}

std::optional<std::string> Channel::reopen_if_refused(const std::string& doing) {
  const auto reply = amqp_get_rpc_reply(connection_);
  if (reply.reply_type != AMQP_RESPONSE_SERVER_EXCEPTION || reply.reply.id != AMQP_CHANNEL_CLOSE_METHOD) {
    check(reply, doing);
    return std::nullopt;
  }
  auto why = channel_close_text(reply);
  amqp_channel_close_ok_t ok{};
  amqp_send_method(connection_, kDeclaring, AMQP_CHANNEL_CLOSE_OK_METHOD, &ok);
  amqp_channel_open(connection_, kDeclaring);
  check(amqp_get_rpc_reply(connection_), "reopening the channel");
  return why;
}

void Channel::declare_exchange(const std::string& name, const std::string& type) {
  amqp_exchange_declare(connection_, kDeclaring, bytes_of(name), bytes_of(type), 0, 1, 0, 0, amqp_empty_table);
  if (const auto why = reopen_if_refused("declaring exchange " + name)) {
    throw TopologyMismatch("exchange " + name + " cannot be declared: " + *why +
                           "; delete it (its bindings are restored) or give Takt a vhost of its own");
  }
}

QueueInfo Channel::declare_queue(const std::string& name, const Arguments& arguments) {
  const Table table(arguments);
  const auto* ok = amqp_queue_declare(connection_, kDeclaring, bytes_of(name), 0, 1, 0, 0, table.get());
  if (const auto why = reopen_if_refused("declaring queue " + name)) {
    throw TopologyMismatch("queue " + name + " exists with other properties: " + *why +
                           "; drain and delete it, then start again, or give Takt a vhost of its own");
  }
  const QueueInfo info{ok->message_count, ok->consumer_count};
  amqp_maybe_release_buffers(connection_);
  return info;
}

std::optional<QueueInfo> Channel::inspect_queue(const std::string& name) {
  const auto* ok = amqp_queue_declare(connection_, kDeclaring, bytes_of(name), 1, 0, 0, 0, amqp_empty_table);
  if (reopen_if_refused("inspecting queue " + name)) return std::nullopt;
  return QueueInfo{ok->message_count, ok->consumer_count};
}

void Channel::bind_queue(const std::string& queue, const std::string& exchange, const std::string& key) {
  amqp_queue_bind(connection_, kDeclaring, bytes_of(queue), bytes_of(exchange), bytes_of(key), amqp_empty_table);
  if (const auto why = reopen_if_refused("binding queue " + queue)) {
    throw TopologyMismatch("queue " + queue + " cannot be bound to exchange " + exchange + ": " + *why);
  }
}

void Channel::purge_queue(const std::string& name) {
  amqp_queue_purge(connection_, kDeclaring, bytes_of(name));
  check(amqp_get_rpc_reply(connection_), "purging queue " + name);
}

void Channel::delete_queue(const std::string& name) {
  amqp_queue_delete(connection_, kDeclaring, bytes_of(name), 0, 0);
  check(amqp_get_rpc_reply(connection_), "deleting queue " + name);
}

void Channel::select_confirms() {
  amqp_confirm_select(connection_, kChannel);
  check(amqp_get_rpc_reply(connection_), "selecting publisher confirms");
}

void Channel::publish(const Message& message) {
  std::vector<amqp_table_entry_t> headers;
  headers.reserve(message.headers.size());
  for (const auto& [key, value] : message.headers) {
    amqp_table_entry_t entry;
    entry.key = bytes_of(key);
    entry.value.kind = AMQP_FIELD_KIND_UTF8;
    entry.value.value.bytes = bytes_of(value);
    headers.push_back(entry);
  }
  amqp_basic_properties_t properties{};
  properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
  properties.delivery_mode = message.persistent ? 2 : 1;
  properties.content_type = bytes_of(message.content_type);
  // A short string holds 255 bytes; the signed id travels whole in its header.
  properties.message_id = bytes_of(std::string_view(message.message_id).substr(0, 255));
  properties.headers = {static_cast<int>(headers.size()), headers.data()};
  check_status(amqp_basic_publish(connection_, kChannel, bytes_of(message.exchange), bytes_of(message.routing_key), 1 /* mandatory */, 0,
                                  &properties, bytes_of(message.body)),
               "publishing");
}

void Channel::consume(const std::string& queue, const std::string& consumer, std::uint16_t prefetch) {
  amqp_basic_qos(connection_, kChannel, 0, prefetch, 0 /* per consumer */);
  check(amqp_get_rpc_reply(connection_), "setting the prefetch");
  amqp_basic_consume(connection_, kChannel, bytes_of(queue), bytes_of(consumer), 0, 0, 0, amqp_empty_table);
  check(amqp_get_rpc_reply(connection_), "consuming from " + queue);
}

void Channel::cancel(const std::string& consumer) {
  amqp_basic_cancel(connection_, kChannel, bytes_of(consumer));
  check(amqp_get_rpc_reply(connection_), "cancelling a consumer");
}

void Channel::ack(std::uint64_t tag, bool multiple) {
  check_status(amqp_basic_ack(connection_, kChannel, tag, multiple ? 1 : 0), "acknowledging");
}

void Channel::reject(std::uint64_t tag, bool requeue) {
  check_status(amqp_basic_reject(connection_, kChannel, tag, requeue ? 1 : 0), "rejecting");
}

bool Channel::has_buffered() const { return amqp_frames_enqueued(connection_) != 0 || amqp_data_in_buffer(connection_) != 0; }

Channel::Cork::Cork(const Channel& channel) : socket_(channel.socket()) {
  const int on = 1;
  ::setsockopt(socket_, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
}
Channel::Cork::~Cork() {
  const int off = 0;
  ::setsockopt(socket_, IPPROTO_TCP, TCP_CORK, &off, sizeof off);
}

int Channel::socket() const { return amqp_get_sockfd(connection_); }

void Channel::process(const std::function<void(Event&&)>& on_event) {
  while (true) {
    timeval no_wait{0, 0};
    amqp_frame_t frame;
    const int status = amqp_simple_wait_frame_noblock(connection_, &frame, &no_wait);
    if (status == AMQP_STATUS_TIMEOUT) return;
    check_status(status, "reading");
    on_frame(frame, on_event);
    if (!content_) amqp_maybe_release_buffers(connection_);
  }
}

void Channel::on_frame(const amqp_frame_t& frame, const std::function<void(Event&&)>& on_event) {
  switch (frame.frame_type) {
    case AMQP_FRAME_METHOD: on_method(frame.payload.method, on_event); break;
    case AMQP_FRAME_HEADER: {
      if (!content_) return;
      const auto* properties = static_cast<const amqp_basic_properties_t*>(frame.payload.properties.decoded);
      auto& delivery = content_->delivery;
      delivery.body_size = frame.payload.properties.body_size;
      if ((properties->_flags & AMQP_BASIC_CONTENT_TYPE_FLAG) != 0) delivery.content_type = text_of(properties->content_type);
      if ((properties->_flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0) delivery.message_id = text_of(properties->message_id);
      if ((properties->_flags & AMQP_BASIC_HEADERS_FLAG) != 0) delivery.headers = table_to_json(properties->headers);
      if (delivery.body_size == 0) finish_content(on_event);
      break;
    }
    case AMQP_FRAME_BODY: {
      if (!content_) return;
      const auto& fragment = frame.payload.body_fragment;
      auto& delivery = content_->delivery;
      content_->received += fragment.len;
      const std::size_t room = kMaxBodyBytes - std::min(delivery.body.size(), kMaxBodyBytes);
      delivery.body.append(static_cast<const char*>(fragment.bytes), std::min(fragment.len, room));
      if (content_->received >= delivery.body_size) finish_content(on_event);
      break;
    }
    default: break;
  }
}

void Channel::on_method(const amqp_method_t& method, const std::function<void(Event&&)>& on_event) {
  switch (method.id) {
    case AMQP_BASIC_DELIVER_METHOD: {
      const auto* deliver = static_cast<const amqp_basic_deliver_t*>(method.decoded);
      content_ = std::make_unique<Content>();
      auto& delivery = content_->delivery;
      delivery.tag = deliver->delivery_tag;
      delivery.redelivered = deliver->redelivered != 0;
      delivery.consumer = text_of(deliver->consumer_tag);
      delivery.exchange = text_of(deliver->exchange);
      delivery.routing_key = text_of(deliver->routing_key);
      break;
    }
    case AMQP_BASIC_RETURN_METHOD: {
      const auto* returned = static_cast<const amqp_basic_return_t*>(method.decoded);
      content_ = std::make_unique<Content>();
      content_->returned = true;
      content_->return_reason = printable(text_of(returned->reply_text), 200);
      content_->delivery.exchange = text_of(returned->exchange);
      content_->delivery.routing_key = text_of(returned->routing_key);
      break;
    }
    case AMQP_BASIC_ACK_METHOD: {
      const auto* ack = static_cast<const amqp_basic_ack_t*>(method.decoded);
      on_event(Confirmed{ack->delivery_tag, ack->multiple != 0, true});
      break;
    }
    case AMQP_BASIC_NACK_METHOD: {
      const auto* nack = static_cast<const amqp_basic_nack_t*>(method.decoded);
      on_event(Confirmed{nack->delivery_tag, nack->multiple != 0, false});
      break;
    }
    case AMQP_BASIC_CANCEL_METHOD:
      on_event(ConsumerCancelled{text_of(static_cast<const amqp_basic_cancel_t*>(method.decoded)->consumer_tag)});
      break;
    case AMQP_CONNECTION_BLOCKED_METHOD:
      on_event(Blocked{printable(text_of(static_cast<const amqp_connection_blocked_t*>(method.decoded)->reason), 200)});
      break;
    case AMQP_CONNECTION_UNBLOCKED_METHOD: on_event(Blocked{std::nullopt}); break;
    case AMQP_CHANNEL_CLOSE_METHOD: {
      const auto* close = static_cast<const amqp_channel_close_t*>(method.decoded);
      throw BrokerUnavailable("broker " + address_ + ": it closed the channel: " + printable(text_of(close->reply_text), 500));
    }
    case AMQP_CONNECTION_CLOSE_METHOD: {
      const auto* close = static_cast<const amqp_connection_close_t*>(method.decoded);
      throw BrokerUnavailable("broker " + address_ + ": it closed the connection: " + printable(text_of(close->reply_text), 500));
    }
    default: break;
  }
}

void Channel::finish_content(const std::function<void(Event&&)>& on_event) {
  const auto content = std::move(content_);
  if (content->returned) {
    const auto& message = content->delivery;
    on_event(Returned{message.message_id, message.exchange, message.routing_key, content->return_reason});
  } else {
    on_event(std::move(content->delivery));
  }
}

}  // namespace takt::amqp
