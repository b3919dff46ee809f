#include "core/observe/status_server.h"

#include <arpa/inet.h>
#include <microhttpd.h>

#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/text/text.h"

namespace takt {

struct StatusServer::Impl {
  std::function<std::string()> metrics;
  std::function<std::vector<HealthPart>()> health;
  MHD_Daemon* daemon = nullptr;

  struct Answer {
    unsigned status;
    const char* type;
    std::string body;
  };

  Answer answer(const std::string& method, const std::string& path) const {
    if (method != "GET" && method != "HEAD") return {MHD_HTTP_METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n"};
    if (path == "/metrics") return {MHD_HTTP_OK, "text/plain; version=0.0.4", metrics()};
    if (path == "/healthz") return {MHD_HTTP_OK, "text/plain", "ok\n"};
    if (path == "/readyz") {
      auto parts = nlohmann::json::object();
      bool ready = true;
      for (const auto& part : health()) {
        ready = ready && part.ok;
        parts[part.name] = {{"ok", part.ok}, {"detail", part.detail}};
      }
      const nlohmann::json body{{"ready", ready}, {"parts", parts}};
      return {ready ? 200U : 503U, "application/json", body.dump() + "\n"};
    }
    return {MHD_HTTP_NOT_FOUND, "text/plain", "known are /metrics, /healthz, /readyz\n"};
  }

  static MHD_Result on_request(void* self, MHD_Connection* connection, const char* url, const char* method, const char* /*version*/,
                               const char* /*upload*/, size_t* upload_size, void** /*state*/) {
    *upload_size = 0;
    const auto made = static_cast<Impl*>(self)->answer(method, url);
    MHD_Response* response = MHD_create_response_from_buffer(made.body.size(), const_cast<char*>(made.body.data()), MHD_RESPMEM_MUST_COPY);
    MHD_add_response_header(response, "Content-Type", made.type);
    const MHD_Result result = MHD_queue_response(connection, made.status, response);
    MHD_destroy_response(response);
    return result;
  }
};

StatusServer::StatusServer(const std::string& listen, std::function<std::string()> metrics, std::function<std::vector<HealthPart>()> health)
    : impl_(std::make_unique<Impl>()) {
  impl_->metrics = std::move(metrics);
  impl_->health = std::move(health);
  const auto colon = listen.rfind(':');
  const std::string host = listen.substr(0, colon);
  std::uint16_t port = 0;
  const std::string digits = colon == std::string::npos ? "" : listen.substr(colon + 1);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (digits.empty() || parsed.ec != std::errc{} || parsed.ptr != digits.data() + digits.size() ||
      ::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    throw std::runtime_error("metrics.listen: \"" + printable(listen, 60) + "\" is not an IPv4 address:port, such as 127.0.0.1:9464");
  }
  address.sin_port = htons(port);
  impl_->daemon = MHD_start_daemon(MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD, port, nullptr, nullptr, Impl::on_request, impl_.get(),
                                   MHD_OPTION_SOCK_ADDR, reinterpret_cast<sockaddr*>(&address), MHD_OPTION_CONNECTION_LIMIT, 64U,
                                   MHD_OPTION_CONNECTION_TIMEOUT, 10U, MHD_OPTION_CONNECTION_MEMORY_LIMIT, static_cast<size_t>(16 * 1024),
                                   MHD_OPTION_END);
  if (impl_->daemon == nullptr) throw std::runtime_error("metrics.listen: " + listen + " cannot be bound: " + std::strerror(errno));
}

StatusServer::~StatusServer() { MHD_stop_daemon(impl_->daemon); }

int StatusServer::port() const { return MHD_get_daemon_info(impl_->daemon, MHD_DAEMON_INFO_BIND_PORT)->port; }

}  // namespace takt
