#pragma once
#include <string>
#include <vector>

#include "core/amqp/channel.h"

namespace takt::amqp {

inline const std::string kTicksExchange = "takt.ticks";
inline const std::string kDeadExchange = "takt.dlx";
inline const std::string kDeadQueue = "takt.dead";
inline const std::string kQuarantineQueue = "takt.quarantine";

/// "takt.ticks.<queue>".
std::string tick_queue(const std::string& queue);

/// Declares everything Takt needs, once and idempotently; nothing relies on a default that differs between RabbitMQ
/// 3.10 and 4.x. Throws TopologyMismatch, with the broker's own words, where something exists with other properties.
///
///  takt.ticks (direct) ─▶ takt.ticks.<queue>  quorum, delivery limit 20, at most 1,000,000 messages, then refuses;
///                                             dead-letters at least once to takt.dlx
///  takt.dlx   (fanout) ─▶ takt.dead           quorum, no length limit: nothing that died may be dropped
///                         takt.quarantine     quorum, at most 10,000 messages and 64 MiB, drops the oldest
void declare_topology(Channel& channel, const std::vector<std::string>& queues);

}  // namespace takt::amqp
