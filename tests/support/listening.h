#pragma once
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <stdexcept>

namespace takt {

/// A socket that listens on a free port of 127.0.0.1, and is closed with the object.
class Listening {
 public:
  /// `backlog`: connections that wait for accept() at most.
  explicit Listening(int backlog) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address_;
    if (::bind(socket_, address(), length) != 0 || ::listen(socket_, backlog) != 0 ||
        ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address_), &length) != 0) {
      ::close(socket_);
      throw std::runtime_error("cannot listen on 127.0.0.1");
    }
  }
  ~Listening() { ::close(socket_); }
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;

  [[nodiscard]] int socket() const { return socket_; }
  [[nodiscard]] int port() const { return ntohs(address_.sin_port); }
  /// Connects `from` to it; what ::connect() returns.
  int connect(int from) const { return ::connect(from, address(), sizeof address_); }

 private:
  [[nodiscard]] const sockaddr* address() const { return reinterpret_cast<const sockaddr*>(&address_); }

  int socket_;
  sockaddr_in address_{};
};

}  // namespace takt
