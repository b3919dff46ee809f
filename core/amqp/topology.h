#pragma once
#include <string>
#include <vector>

#include "core/amqp/channel.h"

namespace takt::amqp {

inline const std::string kTicksExchange = "takt.ticks";
inline const std::string kWakesExchange = "takt.wakes";
inline const std::string kDeadExchange = "takt.dlx";
inline const std::string kDeadQueue = "takt.dead";
inline const std::string kQuarantineQueue = "takt.quarantine";

/// The queue of jobs that name none.
inline const std::string kDefaultQueue = "default";

/// What `takt bench` sends its ticks through: only the worker of its own consumes it.
inline const std::string kBenchQueue = "takt-bench";

/// Queues of ticks that one process knows at most, and so what it holds, declares and looks at for them.
constexpr std::size_t kMaxTickQueues = 100;

/// "takt.ticks.<queue>".
std::string tick_queue(const std::string& queue);
/// "takt.wakes.<queue>".
std::string wake_queue(const std::string& queue);

/// Declares everything Takt needs, once and idempotently; nothing relies on a default that differs between RabbitMQ
/// 3.10 and 4.x. Throws TopologyMismatch, with the broker's own words, where something exists with other properties.
///
///  takt.ticks (direct) ─▶ takt.ticks.<queue>  quorum, delivery limit 20, at most 1,000,000 messages, then refuses;
///                                             dead-letters at least once to takt.dlx
///  takt.wakes (direct) ─▶ takt.wakes.<queue>  classic, declared by workers (try_declare_wake_queue); nothing needs it
///  takt.dlx   (fanout) ─▶ takt.dead           quorum, no length limit: nothing that died may be dropped
///                         takt.quarantine     quorum, at most 10,000 messages and 64 MiB, drops the oldest
void declare_topology(Channel& channel, const std::vector<std::string>& queues);

/// One queue of ticks, when everything else is there. False, and a line in the log each 20 s at most, where it exists with other
/// properties: one such queue keeps nobody from the others.
bool try_declare_tick_queue(Channel& channel, const std::string& queue);

/// The queue in which wake ticks wait for no disk, for who consumes it from then on. Classic; its messages are transient.
/// What nobody takes for a second, and what a consumer rejects, goes on into the queue of ticks. At most 10,000 messages
/// and 16 MiB, then it refuses; it is gone after ten seconds without a consumer. False, with a line in the log as above,
/// where it exists with other properties or on a node that is away: wake ticks go through the queue of ticks then.
bool try_declare_wake_queue(Channel& channel, const std::string& queue);

}  // namespace takt::amqp
