#include "cli/commands.h"
#include "cli/services.h"

namespace takt {

void add_services(CLI::App& app, Context& context) {
  auto* dispatcher = app.add_subcommand("dispatcher", "service: turns schedules and due items into ticks");
  dispatcher->callback([&context] {
    context.configure_logging("dispatcher");
    Services(context, {.dispatcher = true}, "dispatcher").run();
  });

  auto* worker = app.add_subcommand("worker", "service: processes items when ticks say so");
  auto options = std::make_shared<OnceOptions>();
  auto once = std::make_shared<bool>(false);
  auto* once_flag = worker->add_flag("--once", *once, "process one batch and exit; needs no broker");
  worker->add_option("--job", options->job, "with --once: only this job; default: each job that has due items")->needs(once_flag);
  worker->add_option("--batch-size", options->batch_size, "with --once: at most so many items, never above the job's own")
      ->needs(once_flag)
      ->check(CLI::Range(1, 10000));
  worker->add_flag("--dry-run", options->dry_run, "with --once: claim nothing, show what would be done")->needs(once_flag);
  worker->add_flag("--json", options->json, "with --once: the result as JSON")->needs(once_flag);
  worker->callback([&context, options, once] {
    context.configure_logging("worker");
    if (*once) return run_once(context, *options);
    Services(context, {.worker = true}, "worker").run();
  });

  auto* up = app.add_subcommand("up", "all services in one process, for a small installation");
  up->callback([&context] {
    context.configure_logging("takt");
    Services(context, {.dispatcher = true, .worker = true, .archive = true}, "up").run();
  });
}

}  // namespace takt
