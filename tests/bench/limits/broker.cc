// What RabbitMQ alone can do with a quorum queue, through librabbitmq: prints "name value" lines.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/amqp/librabbitmq.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr amqp_channel_t kChannel = 1;
const char* const kQueue = "takt-limits";

amqp_bytes_t bytes(const std::string& text) { return {text.size(), const_cast<char*>(text.data())}; }

void check(amqp_connection_state_t connection, const char* doing) {
  if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) throw std::runtime_error(std::string(doing) + " failed");
}

struct Connection {
  amqp_connection_state_t state = amqp_new_connection();

  Connection() {
    std::string url = std::getenv("TAKT_AMQP_URL");
    amqp_connection_info info;
    if (amqp_parse_url(url.data(), &info) != AMQP_STATUS_OK) throw std::runtime_error("TAKT_AMQP_URL is not understood");
    auto* socket = amqp_tcp_socket_new(state);
    if (amqp_socket_open(socket, info.host, info.port) != AMQP_STATUS_OK) throw std::runtime_error("cannot connect");
    if (amqp_login(state, info.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, info.user, info.password).reply_type != AMQP_RESPONSE_NORMAL) {
      throw std::runtime_error("cannot log in");
    }
    amqp_channel_open(state, kChannel);
    check(state, "opening a channel");
  }
  ~Connection() { amqp_destroy_connection(state); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
};

void declare() {
  Connection on;
  amqp_queue_delete(on.state, kChannel, amqp_cstring_bytes(kQueue), 0, 0);
  amqp_table_entry_t type;
  type.key = amqp_cstring_bytes("x-queue-type");
  type.value.kind = AMQP_FIELD_KIND_UTF8;
  type.value.value.bytes = amqp_cstring_bytes("quorum");
  const amqp_table_t arguments{1, &type};
  amqp_queue_declare(on.state, kChannel, amqp_cstring_bytes(kQueue), 0, 1, 0, 0, arguments);
  check(on.state, "declaring the queue");
}

double publish(int count, int window) {
  Connection on;
  amqp_confirm_select(on.state, kChannel);
  check(on.state, "selecting confirms");
  amqp_basic_properties_t properties{};
  properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
  properties.delivery_mode = 2;
  const std::string body(200, 'b');
  long sent = 0, confirmed = 0;
  const auto began = Clock::now();
  while (confirmed < count) {
    while (sent < count && sent - confirmed < window) {
      if (amqp_basic_publish(on.state, kChannel, amqp_empty_bytes, amqp_cstring_bytes(kQueue), 0, 0, &properties, bytes(body)) !=
          AMQP_STATUS_OK) {
        throw std::runtime_error("publishing failed");
      }
      ++sent;
    }
    amqp_frame_t frame;
    if (amqp_simple_wait_frame(on.state, &frame) != AMQP_STATUS_OK) throw std::runtime_error("no confirm");
    if (frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
      const auto* ack = static_cast<amqp_basic_ack_t*>(frame.payload.method.decoded);
      confirmed = ack->multiple ? static_cast<long>(ack->delivery_tag) : confirmed + 1;
    }
    amqp_maybe_release_buffers(on.state);
  }
  return count / std::chrono::duration<double>(Clock::now() - began).count();
}

double consume(int count, int ack_every) {
  Connection on;
  amqp_basic_qos(on.state, kChannel, 0, 200, 0);
  amqp_basic_consume(on.state, kChannel, amqp_cstring_bytes(kQueue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  check(on.state, "consuming");
  const auto began = Clock::now();
  for (int got = 1; got <= count; ++got) {
    amqp_envelope_t envelope;
    if (amqp_consume_message(on.state, &envelope, nullptr, 0).reply_type != AMQP_RESPONSE_NORMAL)
      throw std::runtime_error("consuming failed");
    if (got % ack_every == 0 || got == count) amqp_basic_ack(on.state, kChannel, envelope.delivery_tag, ack_every > 1);
    amqp_destroy_envelope(&envelope);
    amqp_maybe_release_buffers(on.state);
  }
  return count / std::chrono::duration<double>(Clock::now() - began).count();
}

}  // namespace

int main() {
  constexpr int kCount = 60'000;
  try {
    declare();
    std::printf("publish %.0f\n", publish(kCount, 1000));
    std::printf("consume_ack_50 %.0f\n", consume(kCount, 50));
    declare();
    publish(kCount, 1000);
    std::printf("consume_ack_each %.0f\n", consume(kCount, 1));
    declare();
    double through = 0;
    std::thread consumer([&] { through = consume(kCount, 1); });
    publish(kCount, 1000);
    consumer.join();
    std::printf("publish_and_consume %.0f\n", through);
    Connection on;
    amqp_queue_delete(on.state, kChannel, amqp_cstring_bytes(kQueue), 0, 0);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "limits: %s\n", error.what());
    return 1;
  }
}
