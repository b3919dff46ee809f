#pragma once
#include <atomic>

#include "core/time/time.h"

namespace takt {

/// What a handler must heed while it works. Set from other threads.
class RunControl {
 public:
  /// Begin no further item (shutdown); those under way may finish.
  void stop() { stopped_ = true; }
  /// End those under way, too (the grace period is over).
  void cancel() {
    stopped_ = true;
    cancelled_ = true;
  }
  /// The lease is lost: whatever is done now may be done by another worker as well.
  void lose_lease() {
    lost_ = true;
    cancel();
  }
  [[nodiscard]] bool stopped() const { return stopped_.load(); }
  [[nodiscard]] bool cancelled() const { return cancelled_.load(); }
  [[nodiscard]] bool lost() const { return lost_.load(); }

 private:
  std::atomic<bool> stopped_{false};
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> lost_{false};
};

}  // namespace takt
