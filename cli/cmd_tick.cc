#include <iostream>

#include "cli/commands.h"
#include "cli/enqueue_file.h"
#include "cli/services.h"
#include "core/amqp/publisher.h"
#include "core/amqp/topology.h"
#include "core/random.h"
#include "core/text.h"
#include "core/tick.h"
#include "core/tick_message.h"

namespace takt {

namespace {

struct EnqueueOptions {
  std::string job, payload = "{}", key, run_at, file;
  int priority = 0;
};

void enqueue_one(Context& context, const EnqueueOptions& options) {
  check_json(options.payload, "payload");
  const auto run_at = parse_rfc3339(options.run_at);
  if (!options.run_at.empty() && !run_at)
    throw UsageError("--run-at: \"" + printable(options.run_at, 60) + "\" is not a time such as 2026-11-21T10:00:00Z");
  const auto rows = context.current_database().exec(
      std::string("SELECT takt.enqueue($1, $2::jsonb, $3, coalesce($4::timestamptz, now()), $5)"),
      Params::of(options.job, options.payload, options.key.empty() ? std::nullopt : std::optional(options.key), run_at, options.priority));
  std::cout << "item " << rows.integer(0, 0) << "\n";
}

}  // namespace

std::string publish_tick(Context& context, const std::string& job, unsigned batch_size, bool dry_run) {
  const auto& config = context.config();
  const auto known = context.current_database().exec(std::string("SELECT queue, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
                                                                 " FROM takt.jobs WHERE name = $1 AND removed_at IS NULL"),
                                                     Params::of(job));
  if (known.empty()) throw CommandFailed("no job named \"" + printable(job, 100) + "\"; \"takt jobs\" lists those known");
  const Timestamp now = known.time(0, 1);  // by which workers judge the signature; this machine's clock may be wrong
  v1::JobTick tick;
  tick.set_id("manual:" + job + ":" + random_id());
  tick.set_job(job);
  tick.set_batch_size(batch_size);
  tick.set_dry_run(dry_run);
  set_timestamp(*tick.mutable_due_at(), now);
  auto broker = context.broker("takt tick");
  { amqp::Channel probe(broker.clone("takt tick")); }  // a broker that is away fails here, with its reason
  amqp::Publisher publisher(std::move(broker), publisher_settings(config, {}));
  publisher.start();
  const auto outcome = publisher.publish(signed_message(amqp::kTicksExchange, std::string(known.text(0, 0)), tick.id(), kProtobufType,
                                                        tick.SerializeAsString(), context.keys().ticks(), now),
                                         std::chrono::seconds(10));
  if (outcome != amqp::Outcome::confirmed) throw CommandFailed("the broker did not confirm the tick: " + std::string(to_string(outcome)));
  return tick.id();
}

void add_tick(CLI::App& app, Context& context) {
  auto* enqueue = app.add_subcommand("enqueue", "put an item in, or many from a file");
  auto options = std::make_shared<EnqueueOptions>();
  enqueue->add_option("job", options->job, "the job's name")->required();
  auto* payload = enqueue->add_option("payload", options->payload, "JSON; default {}");
  auto* key = enqueue->add_option("--key", options->key, "unique while the item lives; a second one returns the first");
  enqueue->add_option("--priority", options->priority, "lower first")->check(CLI::Range(-100, 100))->capture_default_str();
  auto* run_at = enqueue->add_option("--run-at", options->run_at, "not before this time, such as 2026-11-21T10:00:00Z");
  enqueue->add_option("--file", options->file, "one JSON payload a line")->excludes(payload)->excludes(key)->excludes(run_at);
  enqueue->callback([&context, options] {
    if (options->file.empty())
      enqueue_one(context, *options);
    else
      std::cout << enqueue_file(context.current_database(), options->file, options->job, options->priority) << " items enqueued\n";
  });

  struct TickOptions {
    std::string job;
    unsigned batch_size = 0;
    bool dry_run = false;
  };
  auto tick_options = std::make_shared<TickOptions>();
  auto* tick = app.add_subcommand("tick", "sign and publish a tick by hand");
  tick->add_option("job", tick_options->job, "the job's name")->required();
  tick->add_option("--batch-size", tick_options->batch_size, "at most so many items, never above the job's own")
      ->check(CLI::Range(1, 10000));
  tick->add_flag("--dry-run", tick_options->dry_run, "claim nothing; the run reports what would be done");
  tick->callback([&context, tick_options] {
    context.configure_logging("tick");
    std::cout << "tick " + publish_tick(context, tick_options->job, tick_options->batch_size, tick_options->dry_run) + " published\n";
  });
}

}  // namespace takt
