#include <atomic>
#include <fstream>
#include <thread>

#include "cli/bench/stand.h"
#include "core/amqp/consumer.h"
#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/tick/tick.h"
#include "core/tick/tick_message.h"

namespace takt::bench {

namespace {

/// Resident memory of this process in MiB.
double resident_mib() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != "VmRSS:") continue;
    double kib = 0;
    status >> kib;
    return kib / 1024;
  }
  return 0;
}

}  // namespace

/// Every tick signed, published and confirmed, and at the same time consumed, verified and acknowledged.
Figures measure_ticks(Stand& stand) {
  constexpr std::size_t kBatch = 500;
  const auto count = static_cast<std::size_t>(stand.count(50'000));
  const auto& keys = stand.context().keys();
  std::atomic<std::size_t> verified = 0, refused = 0;
  amqp::Consumer::Settings consuming;
  consuming.queues = {amqp::tick_queue(kQueue)};
  consuming.tick_queues = {kQueue};
  consuming.prefetch = 200;
  std::unique_ptr<amqp::Consumer> consumer;
  consumer = std::make_unique<amqp::Consumer>(stand.context().broker("takt bench ticks"), consuming, [&](amqp::Delivery&& delivery) {
    const auto id = delivery.header("webhook-id");
    const auto timestamp = delivery.header("webhook-timestamp");
    const auto signature = delivery.header("webhook-signature");
    const auto verdict = verify_tick({delivery.body, delivery.body_size, delivery.content_type, id, timestamp, signature}, keys,
                                     stand.clock().now(), std::chrono::hours(24));
    ++(std::holds_alternative<v1::JobTick>(verdict) ? verified : refused);
    consumer->ack(delivery);
  });
  consumer->start();
  stand.wait("the consumer", [&] { return consumer->state().connected; });
  const auto began = std::chrono::steady_clock::now();
  std::size_t confirmed = 0;
  std::thread publishing([&] {
    for (std::size_t first = 0; first < count; first += kBatch) {
      std::vector<amqp::Message> messages;
      for (std::size_t n = first; n < std::min(count, first + kBatch); ++n) {
        messages.push_back(*tick_message({"due:" + std::to_string(n), "takt-bench.ticks", kQueue, "due", stand.clock().now(), {}}, keys,
                                         stand.clock().now()));
      }
      for (const auto outcome : stand.publisher().publish_all(std::move(messages), std::chrono::seconds(stand.options().seconds))) {
        if (outcome == amqp::Outcome::confirmed) ++confirmed;
      }
    }
  });
  try {
    stand.wait(
        "the ticks", [&] { return verified + refused >= count; },
        [&] { return "ticks: " + std::to_string(verified) + " of " + std::to_string(count); });
  } catch (...) {
    publishing.join();
    throw;
  }
  publishing.join();
  const double seconds = seconds_between(began, std::chrono::steady_clock::now());
  consumer->stop();
  if (refused > 0 || confirmed != count) {
    throw CommandFailed("ticks: " + std::to_string(confirmed) + " of " + std::to_string(count) + " confirmed, " + std::to_string(refused) +
                        " refused");
  }
  return {{"ticks", "signed, confirmed, verified", static_cast<double>(count) / seconds, "1/s"}};
}

namespace {
struct OfSchedules {
  std::int64_t job_id = 0;
  int count = 0;
  static constexpr auto fields() { return std::tuple(&OfSchedules::job_id, &OfSchedules::count); }
};
// All are counted only when none is left to be published: to count while they come would take a tenth of a core.
constexpr Query<OfSchedules, Answer> kAllPublished{
    "bench_all_published",
    "SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM takt.ticks WHERE job_id = $1 AND published_at IS NULL AND finished_at IS NULL)"
    " THEN (SELECT count(*) FROM takt.ticks WHERE job_id = $1) >= $2 ELSE false END AS is_so"};
struct Lateness : Count {
  double p50 = 0, p99 = 0, last = 0;  ///< milliseconds
  static constexpr auto fields() {
    return std::tuple_cat(Count::fields(),
                          std::tuple(Field("p50", &Lateness::p50), Field("p99", &Lateness::p99), Field("last", &Lateness::last)));
  }
};
constexpr Query<One<std::int64_t>, Lateness> kLateness{
    "bench_lateness",
    "SELECT count(DISTINCT id) AS count,"
    " (extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY published_at - due_at)) * 1000)::float8 AS p50,"
    " (extract(epoch FROM percentile_cont(0.99) WITHIN GROUP (ORDER BY published_at - due_at)) * 1000)::float8 AS p99,"
    " (extract(epoch FROM max(published_at - due_at)) * 1000)::float8 AS last FROM takt.ticks WHERE job_id = $1"};
}  // namespace

/// Schedules that are all due in the same second. Lateness: from the slot to the mark that its tick was confirmed.
Figures measure_schedules(Stand& stand) {
  const int count = stand.count(1000);
  const auto job = plain_job(stand, "schedules", NativeHandlerConfig{"noop"});
  const auto id = stand.install(job);
  stand.start_dispatcher();
  auto& database = stand.database();
  const int ahead = 3 + count / 20'000;  // seconds, so that all are stored before they are due
  database.exec(
      std::string(
          "INSERT INTO takt.schedules (job_id, name, cron, time_zone, misfire, misfire_after, misfire_limit, misfire_max_age,"
          " jitter, source, next_due, next_fire)"
          " SELECT $1, 's' || n, to_char(slot, 'SS MI HH24 DD MM') || ' *', 'UTC', 'all', '60 s', 10, '1 day', '0', 'api', slot, slot"
          " FROM (SELECT date_trunc('second', clock_timestamp()) + $3 * interval '1 s' AS slot) t, generate_series(1, $2::integer) n"),
      Params::of(id, count, ahead));
  database.exec(std::string("ANALYZE takt.schedules"));
  database.exec(std::string("UPDATE takt.jobs SET paused = false WHERE id = $1"), Params::of(id));
  double resident = 0;
  stand.wait("the ticks", [&] {
    resident = std::max(resident, resident_mib());
    return stand.may_ask() && query(database, kAllPublished, {id, count}).at(0).is_so;
  });
  const auto late = query(database, kLateness, {id}).at(0);
  if (late.count != count) {
    throw CommandFailed("schedules: " + std::to_string(late.count) + " ticks for " + std::to_string(count) + " schedules");
  }
  return {{"schedules", "due together", static_cast<double>(count), ""},
          {"schedules", "lateness, p50", late.p50, "ms"},
          {"schedules", "lateness, p99", late.p99, "ms"},
          {"schedules", "lateness, last", late.last, "ms"},
          {"schedules", "resident memory", resident, "MiB"}};
}

}  // namespace takt::bench
