#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "core/config/config.h"
#include "core/db/database.h"
#include "core/metrics.h"
#include "worker/handler.h"

namespace takt {

/// One statement an item, in a named database, as a role of its own. $1 payload, $2 key, $3 item id, $4 attempt.
class SqlHandler final : public Handler {
 public:
  /// The URLs are read from the environment at first use.
  SqlHandler(std::map<std::string, NamedDatabase> databases, Metrics& metrics);
  ~SqlHandler() override;
  void run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) override;

 private:
  Database& open(const std::string& name);

  const std::map<std::string, NamedDatabase> configured_;
  Metrics& metrics_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Database>> opened_;  // guarded by mutex_
};

}  // namespace takt
