#include <unistd.h>

#include <cmath>
#include <iostream>

#include "cli/bench/stand.h"
#include "cli/commands.h"
#include "cli/table.h"

namespace takt {

namespace {

struct Bench {
  const char* name;
  const char* what;
  bench::Figures (*measure)(bench::Stand&);
};

constexpr Bench kBenches[] = {
    {"drain", "a backlog of no-op items, runs and attempts recorded", bench::measure_drain},
    {"enqueue", "items in, in sets and one a commit", bench::measure_enqueue},
    {"http", "one signed POST an item, to a local server or --url", bench::measure_http},
    {"latency", "from takt.enqueue's commit to the handler, at 100 a second", bench::measure_latency},
    {"ticks", "ticks signed, published, confirmed, consumed and verified", bench::measure_ticks},
    {"schedules", "schedules that are due in the same second", bench::measure_schedules},
};

struct BenchOptions : bench::Options {
  bool json = false;
};

/// Two digits after the point for small values, none for large ones.
double rounded(double value) { return value < 100 ? std::round(value * 100) / 100 : std::round(value); }

void run_benches(Context& context, const BenchOptions& options, const std::string& only) {
  bench::Figures figures;
  for (const auto& each : kBenches) {
    if (!only.empty() && only != each.name) continue;
    if (::isatty(STDERR_FILENO) != 0) std::cerr << each.name << ": " << each.what << "\n";
    bench::Stand stand(context, options);  // a fresh one each, so that none measures the leavings of another
    for (auto& figure : each.measure(stand)) figures.push_back(std::move(figure));
  }
  Table table({"bench", "measure", "value", "unit"});
  for (const auto& figure : figures) table.add({figure.bench, figure.measure, rounded(figure.value), figure.unit});
  table.print(options.json, "nothing measured");
}

}  // namespace

void add_bench(CLI::App& app, Context& context) {
  auto* parent = app.add_subcommand("bench", "measure this installation: its database, its broker, this binary");
  parent->require_subcommand(1);
  auto options = std::make_shared<BenchOptions>();
  const auto add = [&](const std::string& name, const std::string& what, const std::string& only) {
    auto* command = parent->add_subcommand(name, what);
    command->add_option("--count", options->count, "items, messages or schedules; default: the bench's own")
        ->check(CLI::Range(1, 10'000'000));
    command->add_option("--seconds", options->seconds, "no measurement takes longer")->check(CLI::Range(1, 3600))->capture_default_str();
    command->add_option("--batch-size", options->batch_size, "items a run; default: a job's default")->check(CLI::Range(1, 10'000));
    command->add_option("--runs", options->runs, "runs at once; default: worker.runs")->check(CLI::Range(1, 256));
    command->add_option("--connections", options->connections, "connections of single enqueues, and HTTP requests at once")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    command->add_option("--payload", options->payload, "bytes of an item's payload")->check(CLI::Range(30, 500'000))->capture_default_str();
    command->add_option("--url", options->url, "destination of the HTTP bench; default: a local server of its own");
    command->add_flag("--beside-live-work", options->beside_live_work, "measure although other jobs have items");
    command->add_flag("--json", options->json, "as JSON");
    command->callback([&context, options, only] {
      context.log_level = context.log_level == "info" ? "warn" : context.log_level;
      context.configure_logging("takt");
      run_benches(context, *options, only);
    });
  };
  for (const auto& each : kBenches) add(each.name, each.what, each.name);
  add("all", "all of them, one after another", "");
}

}  // namespace takt
