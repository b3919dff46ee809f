#pragma once
#include <array>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/amqp/publisher.h"
#include "dispatcher/due_scan.h"
#include "dispatcher/duty.h"
#include "dispatcher/schedule_scan.h"

namespace takt {

/// Stores the slots of schedules that are due shortly, and wakes jobs that have due items: after a notification at once, otherwise
/// every scan_interval, and less often while nothing happens.
class ScanDuty : public Duty {
 public:
  struct Settings {
    Duration scan_interval{};
    int parallel_ticks = 6;
  };

  /// `publisher` is the one that wake ticks leave by.
  ScanDuty(const DutyContext& context, const amqp::Publisher& publisher, Settings settings);

  Round run_once() override;
  /// Until an item was enqueued, a scan is wanted, or `time` is over.
  void wait(Duration time) override;

 private:
  void ask_pool();
  void listen();
  void stop_listening(const char* why);
  void publish_wakes(const std::vector<WakeTick>& ticks);
  void wake_heard(const Term& term);
  /// When to look again.
  SteadyTime wake_due(const Term& term);
  SteadyTime store_slots(const Term& term);

  const amqp::Publisher& publisher_;
  const Settings settings_;
  ScheduleScan schedules_;
  DueScan due_;
  SteadyTime next_slots_{}, next_look_{}, last_busy_{};
  SteadyTime not_before_{};               // due-scans were slow
  std::uint64_t losses_ = 0;              // publisher_.losses() when last looked
  std::array<Duration, 8> last_scans_{};  // how long they took
  std::size_t scans_ = 0;
  std::unique_ptr<DatabaseConnection> listener_;  // where notifications are heard
  SteadyTime next_listen_{};                      // zero while listening has not failed
  std::set<std::string> heard_;                   // jobs that were notified of, "" for all
};

}  // namespace takt
