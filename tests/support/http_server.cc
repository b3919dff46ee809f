#include "tests/support/http_server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <regex>

namespace takt {

MisbehavingServer::MisbehavingServer(Script script) : listening_(128), script_(std::move(script)) {
  acceptor_ = std::thread([this] { accept_loop(); });
}

MisbehavingServer::~MisbehavingServer() {
  stopping_ = true;
  acceptor_.join();
  for (auto& thread : threads_) thread.join();
}

std::string MisbehavingServer::url(const std::string& path) const { return "http://127.0.0.1:" + std::to_string(listening_.port()) + path; }

void MisbehavingServer::accept_loop() {
  while (!stopping_) {
    pollfd watched{listening_.socket(), POLLIN, 0};
    if (::poll(&watched, 1, 20) <= 0) continue;
    const int socket = ::accept4(listening_.socket(), nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) continue;
    ++connections_;
    threads_.emplace_back([this, socket] {
      script_(socket);
      ::close(socket);
    });
  }
}

std::string MisbehavingServer::read_request(int socket) {
  std::string text;
  std::size_t wanted = std::string::npos;
  char buffer[4096];
  while (text.size() < wanted) {
    const ssize_t got = ::recv(socket, buffer, sizeof buffer, 0);
    if (got <= 0) return "";
    text.append(buffer, static_cast<std::size_t>(got));
    const auto end = text.find("\r\n\r\n");
    if (end == std::string::npos) continue;
    std::smatch length;
    const std::string head = text.substr(0, end);
    wanted = end + 4 + (std::regex_search(head, length, std::regex("Content-Length: ([0-9]+)")) ? std::stoul(length[1]) : 0);
  }
  return text;
}

void MisbehavingServer::send_all(int socket, const std::string& bytes) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t put = ::send(socket, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (put <= 0) return;
    sent += static_cast<std::size_t>(put);
  }
}

std::string MisbehavingServer::response(int status, const std::string& body, const std::string& extra_headers) {
  return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + extra_headers + "\r\n" +
         body;
}

}  // namespace takt
