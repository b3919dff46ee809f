#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/listening.h"

namespace takt {

/// A destination that misbehaves to order: a bare TCP server whose script gets each connection's socket. Joins its
/// threads on destruction.
class MisbehavingServer {
 public:
  using Script = std::function<void(int socket)>;
  explicit MisbehavingServer(Script script);
  ~MisbehavingServer();
  MisbehavingServer(const MisbehavingServer&) = delete;
  MisbehavingServer& operator=(const MisbehavingServer&) = delete;

  [[nodiscard]] std::string url(const std::string& path = "/") const;
  [[nodiscard]] int connections() const { return connections_.load(); }
  [[nodiscard]] bool stopping() const { return stopping_.load(); }

  /// Reads one request's head and body (by Content-Length); empty when the peer has closed.
  static std::string read_request(int socket);
  static void send_all(int socket, const std::string& bytes);
  static std::string response(int status, const std::string& body, const std::string& extra_headers = "");

 private:
  void accept_loop();
  Listening listening_;
  Script script_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  std::vector<std::thread> threads_;  // accept thread only, until joined
  std::thread acceptor_;
};

}  // namespace takt
