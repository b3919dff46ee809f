#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace takt {

/// Why the part "database" is not ok.
inline constexpr auto kNoDatabase = "PostgreSQL cannot be used: its last statement had no answer, or no connection is to be had";

/// One thing a service depends on, as /readyz shows it.
struct HealthPart {
  std::string name;
  bool ok;
  std::string detail;
};

/// /metrics, /healthz and /readyz on one address. /healthz answers 200 while the process serves; /readyz answers 503
/// while any part is not ok, with the parts as JSON. Read-only; at most 64 connections, 10 s each when idle.
/// The callbacks run on the server's thread.
class StatusServer {
 public:
  /// `listen`: "address:port"; port 0 picks a free one. Throws std::runtime_error that says what is wrong.
  StatusServer(const std::string& listen, std::function<std::string()> metrics, std::function<std::vector<HealthPart>()> health);
  ~StatusServer();
  StatusServer(const StatusServer&) = delete;
  StatusServer& operator=(const StatusServer&) = delete;

  [[nodiscard]] int port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace takt
