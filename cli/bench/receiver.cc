#include <microhttpd.h>

#include "cli/bench/stand.h"

namespace takt::bench {

struct Receiver::Impl {
  MHD_Daemon* daemon = nullptr;
  MHD_Response* answer = nullptr;

  static MHD_Result on_request(void* self, MHD_Connection* connection, const char* /*url*/, const char* /*method*/, const char* /*version*/,
                               const char* /*upload*/, size_t* upload_size, void** state) {
    static int begun = 0;
    if (*state == nullptr) {
      *state = &begun;
      return MHD_YES;  // wait for the body
    }
    if (*upload_size != 0) {
      *upload_size = 0;
      return MHD_YES;
    }
    return MHD_queue_response(connection, MHD_HTTP_NO_CONTENT, static_cast<Impl*>(self)->answer);
  }
};

Receiver::Receiver() : impl_(std::make_unique<Impl>()) {
  static char nothing = 0;
  impl_->answer = MHD_create_response_from_buffer(0, &nothing, MHD_RESPMEM_PERSISTENT);
  impl_->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, nullptr, nullptr, Impl::on_request, impl_.get(),
                                   MHD_OPTION_CONNECTION_LIMIT, 1000U, MHD_OPTION_CONNECTION_TIMEOUT, 30U, MHD_OPTION_END);
  if (impl_->daemon == nullptr) throw CommandFailed("no port is free for a local HTTP server; give --url");
}

Receiver::~Receiver() {
  MHD_stop_daemon(impl_->daemon);
  MHD_destroy_response(impl_->answer);
}

std::string Receiver::url() const {
  return "http://127.0.0.1:" + std::to_string(MHD_get_daemon_info(impl_->daemon, MHD_DAEMON_INFO_BIND_PORT)->port) + "/";
}

}  // namespace takt::bench
