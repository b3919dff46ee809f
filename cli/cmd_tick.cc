#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/enqueue_file.h"
#include "cli/services.h"
#include "core/amqp/publisher.h"
#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/process/random.h"
#include "core/text/text.h"
#include "core/tick/tick.h"
#include "core/tick/tick_message.h"

namespace takt {

namespace {

struct EnqueueOptions {
  std::string job, payload = "{}", key, run_at, file;
  int priority = 0;
  bool json = false;
};

struct NewItem {
  std::string job, payload;
  std::optional<std::string> key;
  std::optional<Timestamp> run_at;
  int priority = 0;
  static constexpr auto fields() {
    return std::tuple(&NewItem::job, &NewItem::payload, &NewItem::key, &NewItem::run_at, &NewItem::priority);
  }
};
struct EnqueuedRow {
  std::int64_t item = 0;
  bool created = false;
  static constexpr auto fields() { return std::tuple(Field("item", &EnqueuedRow::item), Field("created", &EnqueuedRow::created)); }
};
// Whether it was there already is what a set tells; without a key it never was.
constexpr Query<NewItem, EnqueuedRow> kEnqueue{
    "enqueue_one", "SELECT takt.enqueue($1, $2::jsonb, $3, coalesce($4::timestamptz, now()), $5) AS item, true AS created"};
constexpr Query<NewItem, EnqueuedRow> kEnqueueKeyed{
    "enqueue_keyed",
    "SELECT item_id AS item, created FROM takt.enqueue_many($1, ARRAY[$2::jsonb], ARRAY[$3::text],"
    " ARRAY[coalesce($4::timestamptz, now())], ARRAY[$5::integer])"};

void enqueue_one(Context& context, const EnqueueOptions& options) {
  check_json(options.payload, "payload");
  NewItem item{
      .job = options.job, .payload = options.payload, .key = optional_text(options.key), .run_at = {}, .priority = options.priority};
  if (!options.run_at.empty()) item.run_at = parse_coming_moment(options.run_at, "--run-at", [&] { return context.now(); });
  const auto stored = query(context.current_database(), options.key.empty() ? kEnqueue : kEnqueueKeyed, item).at(0);
  say(options.json, {{"item", stored.item}, {"created", stored.created}},
      "item " + std::to_string(stored.item) + (stored.created ? "" : " (was there)"));
}

struct TickedJob {
  std::string queue;
  Timestamp now;  ///< by which workers judge the signature; this machine's clock may be wrong
  bool paused = false;
  static constexpr auto fields() {
    return std::tuple(Field("queue", &TickedJob::queue), Field("now_us", &TickedJob::now), Field("paused", &TickedJob::paused));
  }
};
constexpr Query<One<std::string>, TickedJob> kTicked{
    "job_to_tick",
    "SELECT queue, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us, paused"
    " FROM takt.jobs WHERE name = $1 AND removed_at IS NULL"};

}  // namespace

void publish_tick(Context& context, const TickOptions& options) {
  const auto& job = options.job;
  const auto& config = context.config();
  const auto known = query(context.current_database(), kTicked, {job});
  if (known.empty()) throw no_job(context.database(), job);
  const auto& [queue, now, paused] = known.front();
  v1::JobTick tick;
  tick.set_id("manual:" + job + ":" + random_id());
  tick.set_job(job);
  tick.set_batch_size(options.batch_size);
  tick.set_dry_run(options.dry_run);
  set_timestamp(*tick.mutable_due_at(), now);
  auto broker = context.broker("takt tick");
  { amqp::Channel probe(broker.clone("takt tick")); }  // a broker that is away fails here, with its reason
  amqp::Publisher publisher(std::move(broker), publisher_settings(config, {}));
  publisher.start();
  const auto outcome = publisher.publish(
      signed_message(amqp::kTicksExchange, queue, tick.id(), kProtobufType, tick.SerializeAsString(), context.keys().ticks(), now),
      std::chrono::seconds(10));
  if (outcome != amqp::Outcome::confirmed) throw CommandFailed("the broker did not confirm the tick: " + std::string(to_string(outcome)));
  say(options.json, {{"job", job}, {"tick", tick.id()}, {"paused", paused}},
      "tick " + tick.id() + " published" + (paused ? "; the job is paused: it does nothing until \"takt jobs resume " + job + "\"" : ""));
}

void add_tick(CLI::App& app, Context& context) {
  auto* enqueue = app.add_subcommand("enqueue", "put an item in, or many from a file");
  auto options = std::make_shared<EnqueueOptions>();
  enqueue->add_option("job", options->job, "the job's name")->required();
  auto* payload = enqueue->add_option("payload", options->payload, "JSON; default {}");
  auto* key = enqueue->add_option("--key", options->key, "unique while the item lives; a second one returns the first");
  enqueue->add_option("--priority", options->priority, "lower first")->check(CLI::Range(-100, 100))->capture_default_str();
  auto* run_at = enqueue->add_option("--run-at", options->run_at,
                                     "not before this time, such as 2026-11-21T10:00:00Z, or so long from now, such as 1h");
  enqueue->add_flag("--json", options->json, "the outcome as JSON");
  enqueue->add_option("--file", options->file, "one JSON payload a line; -: standard input")
      ->excludes(payload)
      ->excludes(key)
      ->excludes(run_at);
  enqueue->callback([&context, options] {
    if (options->file.empty()) return enqueue_one(context, *options);
    const auto stored = enqueue_file(context.current_database(), options->file, options->job, options->priority);
    say(options->json, {{"enqueued", stored}}, std::to_string(stored) + " items enqueued");
  });

  auto tick_options = std::make_shared<TickOptions>();
  auto* tick = app.add_subcommand("tick", "sign and publish a tick by hand");
  tick->add_option("job", tick_options->job, "the job's name")->required();
  tick->add_option("--batch-size", tick_options->batch_size, "at most so many items, never above the job's own")
      ->check(CLI::Range(1, 10000));
  tick->add_flag("--dry-run", tick_options->dry_run, "claim nothing; the run reports what would be done");
  tick->add_flag("--json", tick_options->json, "the outcome as JSON");
  tick->callback([&context, tick_options] {
    context.configure_logging("tick");
    publish_tick(context, *tick_options);
  });
}

}  // namespace takt
