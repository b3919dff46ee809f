#pragma once
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/amqp/publisher.h"
#include "core/installation/troubles.h"
#include "dispatcher/duty.h"
#include "dispatcher/retention.h"

namespace takt {

/// Asks for the lease, and renews it.
class LeaseDuty : public Duty {
 public:
  LeaseDuty(const DutyContext& context, Duration lease) : Duty(context), lease_(lease) {}
  Round run_once() override;

 private:
  const Duration lease_;
  bool was_leading_ = false;
};

/// Publishes what the outbox was offered. There are two, also so that one batch is marked in PostgreSQL while the next is on its way to
/// the broker; where the one's connection is away, the other does it all.
class PublishDuty : public Duty {
 public:
  PublishDuty(const DutyContext& context, amqp::Publisher& publisher, const amqp::Publisher& other)
      : Duty(context), publisher_(publisher), other_(other) {}
  Round run_once() override;
  /// Sends what the outbox holds for later, so that slots which are due while one dispatcher stops and another begins need not wait
  /// for the other's sweep.
  void end() override;

 private:
  amqp::Publisher& publisher_;
  const amqp::Publisher& other_;
};

/// Publishes stored ticks and dead letters that nobody offered, or that were not confirmed.
class SweepDuty : public Duty {
 public:
  using Duty::Duty;
  Round run_once() override;
};

/// Gives back the items of runs whose lease is over.
class RescueDuty : public Duty {
 public:
  using Duty::Duty;
  Round run_once() override;
};

/// Wakes items that were lost with their worker twice in a row, one at a time.
class SuspectsDuty : public Duty {
 public:
  using Duty::Duty;
  Round run_once() override;
};

/// Has ticks published again that were sent and that no worker began.
class ForgottenDuty : public Duty {
 public:
  ForgottenDuty(const DutyContext& context, Duration republish_after) : Duty(context), republish_after_(republish_after) {}
  Round run_once() override;

 private:
  const Duration republish_after_;
};

/// Reads the backlog for the metrics. What is shown is the leader's alone: what it was once would lie beside what its successor shows.
class GaugesDuty : public Duty {
 public:
  /// `long_reads`: see RetentionDuty.
  GaugesDuty(const DutyContext& context, amqp::Publisher& publisher, std::mutex& long_reads)
      : Duty(context), publisher_(publisher), long_reads_(long_reads) {}
  Round run_once() override;

 private:
  amqp::Publisher& publisher_;
  std::mutex& long_reads_;
  SteadyTime next_{};
};

/// Looks who lives and what is missing, and tells it.
class ServicesDuty : public Duty {
 public:
  using Duty::Duty;
  Round run_once() override;
  /// The troubles as the leader saw them last; empty while there are none, or another leads. Any thread.
  [[nodiscard]] std::string said() const;

 private:
  void tell_changes(const std::vector<Trouble>& troubles);
  void say(std::string said);

  SteadyTime next_forgetting_{};
  std::set<std::pair<std::string, std::string>> told_;  // troubles that were logged, by what and about
  mutable std::mutex mutex_;
  std::string said_;  // guarded by mutex_
};

/// Prunes what is too old. `long_reads` is held by one at a time of those whose statements take long: they use one connection, not two.
class RetentionDuty : public Duty {
 public:
  RetentionDuty(const DutyContext& context, const RetentionSettings& settings, std::mutex& long_reads)
      : Duty(context), settings_(settings), long_reads_(long_reads) {}
  Round run_once() override;

 private:
  const RetentionSettings& settings_;
  std::mutex& long_reads_;
};

/// Makes history's partitions and drops old ones, and has tables counted that have grown.
class PartitionsDuty : public Duty {
 public:
  PartitionsDuty(const DutyContext& context, Duration history) : Duty(context), history_(history) {}
  Round run_once() override;
  /// Where history's partitions end; nullopt: not known, or not leading. Any thread.
  [[nodiscard]] std::optional<Timestamp> end_of_history() const;

 private:
  const Duration history_;
  SteadyTime next_{};
  std::atomic<std::int64_t> end_{0};  // Unix microseconds; 0: nullopt
};

}  // namespace takt
