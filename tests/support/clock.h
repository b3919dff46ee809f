#pragma once
#include "core/time/time.h"

namespace takt {

/// A clock that moves only when told.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(std::string_view at = "2026-11-21T10:00:00Z") : now_(*parse_rfc3339(at)) {}
  [[nodiscard]] Timestamp now() const override { return now_; }
  [[nodiscard]] SteadyTime steady() const override { return steady_; }
  void advance(Duration by) {
    now_ += by;
    steady_ += by;
  }

 private:
  Timestamp now_;
  SteadyTime steady_{};
};

}  // namespace takt
