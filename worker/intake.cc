#include "worker/intake.h"

#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/observe/log.h"
#include "core/process/random.h"
#include "core/text/text.h"
#include "core/tick/tick_message.h"

namespace takt {

namespace {

constexpr Duration kPublishTimeout = std::chrono::seconds(10);
/// What of an unverified body the quarantine keeps: with its 10,000 messages, at most 640 MB on the broker's disk
/// before its own limit of 64 MiB, and never more than this in a worker.
constexpr std::size_t kQuarantinedBytes = 64 * 1024;
/// Names of no job that are remembered, and for how long: a flood of ticks for one costs a second of waiting once a minute. So long
/// an apply that publishes first may take on a busy machine; and so often a tick is returned, where the names do not fit.
constexpr std::size_t kDoubted = 1000;
constexpr Duration kMoment = std::chrono::seconds(1);
constexpr std::int64_t kReturns = 5;
constexpr Duration kDoubtedFor = std::chrono::minutes(1);

struct TickId {
  std::string id;
  static constexpr auto fields() { return std::tuple(&TickId::id); }
};
struct Found {
  std::string id;
  static constexpr auto fields() { return std::tuple(Field("id", &Found::id)); }
};

// Served by ticks' primary key. The catalog's "unknown" is newer than the apply that removed the job and finished its ticks.
constexpr Query<TickId, Found> kFinished{"tick_is_finished", "SELECT id FROM takt.ticks WHERE id = $1 AND finished_at IS NOT NULL"};

// Served by ticks' primary key. What it carried is in its letter. The row of a tick that is begun is its run's.
constexpr Query<TickId, NoRow> kGivenUp{"tick_given_up", R"sql(
  UPDATE takt.ticks SET finished_at = now(), items = NULL WHERE id = $1 AND finished_at IS NULL AND lease_until IS NULL
)sql"};

}  // namespace

bool Intake::quarantine(const amqp::Delivery& delivery, RejectReason reason) {
  metrics_.tick_rejected(to_string(reason));
  const std::string id = printable(delivery.header("webhook-id").value_or(""), 128);
  if (const auto messages = refusals_.due(static_cast<std::size_t>(reason)); messages > 0) {
    log_warn("tick quarantined", {{"reason", to_string(reason)},
                                  {"messages", messages},
                                  {"tick", id},
                                  {"bytes", delivery.body_size},
                                  {"queue", delivery.routing_key}});
  }
  amqp::Message message;
  message.routing_key = amqp::kQuarantineQueue;  // the default exchange
  message.content_type = printable(delivery.content_type, 100);
  message.message_id = random_id();
  message.headers = {{"takt-reason", std::string(to_string(reason))},
                     {"takt-queue", delivery.routing_key},
                     {"takt-bytes", std::to_string(delivery.body_size)},
                     {"takt-at", format_rfc3339(clock_.now())},
                     {"webhook-id", id},
                     {"webhook-timestamp", printable(delivery.header("webhook-timestamp").value_or(""), 32)}};
  message.body = delivery.body.substr(0, kQuarantinedBytes);
  return publisher_.publish(std::move(message), kPublishTimeout) == amqp::Outcome::confirmed;
}

/// Dead-letters a tick that no job will take. In this order: a crash in between brings the tick again, whose letter has the
/// same id. A row that stayed unfinished would be published, and dead-lettered, again and again (ticks_forgotten). One that is
/// finished was dealt with, by apply with its job: what it carried is an item there, and would be a second one by its letter.
bool Intake::give_up(const v1::JobTick& tick) {
  if (!query(database_, kFinished, {tick.id()}).empty()) {
    metrics_.tick_duplicate();
    log_debug("tick duplicate", {{"tick", tick.id()}, {"job", tick.job()}});
    return true;
  }
  v1::DeadLetter letter;
  letter.set_id("tick-" + tick.id());
  letter.set_kind(v1::DeadLetter::KIND_TICK);
  letter.set_job(tick.job());
  letter.set_reason("unknown_job");
  letter.set_error("no job named \"" + tick.job() + "\"");
  set_timestamp(*letter.mutable_died_at(), clock_.now());
  *letter.mutable_tick() = tick;
  auto message = dead_letter_message(letter.id(), kProtobufType, letter.SerializeAsString(), keys_, clock_.now());
  if (publisher_.publish(std::move(message), kPublishTimeout) != amqp::Outcome::confirmed) return false;
  execute_retrying(database_, kGivenUp, {tick.id()});
  log_warn("tick dead-lettered", {{"reason", "unknown_job"}, {"job", tick.job()}, {"tick", tick.id()}});
  metrics_.dead_letter("unknown_job");
  return true;
}

std::variant<AcceptedTick, Disposed, NotNow> Intake::judge(const amqp::Delivery& delivery) {
  metrics_.tick_received();
  if (!clock_.heard()) catalog_.refresh();  // this process's own clock may be wrong
  const auto id = delivery.header("webhook-id");
  const auto timestamp = delivery.header("webhook-timestamp");
  const auto signature = delivery.header("webhook-signature");
  const TickMessage message{delivery.body, delivery.body_size, delivery.content_type, id, timestamp, signature};
  auto verdict = verify_tick(message, keys_, clock_.now(), max_tick_age_);
  const auto* refused = std::get_if<RejectReason>(&verdict);
  // This machine may have slept since it last heard PostgreSQL's time.
  if (refused != nullptr && *refused == RejectReason::future_dated) {
    catalog_.refresh_rarely();
    verdict = verify_tick(message, keys_, clock_.now(), max_tick_age_);
  }
  if (const auto* reason = std::get_if<RejectReason>(&verdict)) {
    // With the leader's key missing here, its ticks look like forged ones: others judge them. Asked anew, since what was heard
    // before this tick may be of the leader before.
    if (*reason == RejectReason::bad_signature && signer_.ask() == SignerCheck::Verdict::lacks) {
      if (const auto ticks = foreign_.due(0); ticks > 0)
        log_error("ticks given back", {{"ticks", ticks}, {"error", "this worker " + signer_.fault()}});
      return NotNow{};
    }
    if (quarantine(delivery, *reason)) return Disposed{};
    return NotNow{};
  }
  auto& tick = std::get<v1::JobTick>(verdict);
  auto found = catalog_.look_up(tick.job());
  if (auto* job = std::get_if<std::shared_ptr<const CatalogJob>>(&found)) return AcceptedTick{std::move(tick), std::move(*job)};
  if (std::get<NoJob>(found) == NoJob::unreadable) {
    if (const auto ticks = unreadable_.due(0); ticks > 0) {
      log_warn("tick returned", {{"reason", "job definition unreadable"},
                                 {"job", tick.job()},
                                 {"tick", tick.id()},
                                 {"ticks", ticks},
                                 {"then", "run the newer takt that applied it"}});
    }
    return NotNow{};
  }
  if (asked_before(delivery, tick.job()) && give_up(tick)) return Disposed{};
  return NotNow{};
}

/// Whether this tick, or another for that name, was returned to the queue for a second: whoever ticks a job in the moment
/// in which it is applied may be faster than the commit.
bool Intake::asked_before(const amqp::Delivery& delivery, const std::string& job) {
  const auto now = clock_.steady();
  const std::scoped_lock lock(mutex_);
  if (doubted_.size() >= kDoubted && !doubted_.contains(job)) doubted_.clear();
  auto& since = doubted_.try_emplace(job, now).first->second;
  if (now - since >= kDoubtedFor) since = now;
  return delivery.times_returned() >= kReturns || now - since >= kMoment;
}

}  // namespace takt
