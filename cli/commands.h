#pragma once
#include "cli/context.h"

namespace takt {

// Each adds its commands to the parser; their callbacks throw CommandFailed, UsageError, or what the parts throw.
void add_migrate(CLI::App& app, Context& context);
void add_apply(CLI::App& app, Context& context);
void add_check(CLI::App& app, Context& context);
void add_services(CLI::App& app, Context& context);  // dispatcher, worker, up
void add_look(CLI::App& app, Context& context);      // jobs, schedules, runs
void add_items(CLI::App& app, Context& context);
void add_status(CLI::App& app, Context& context);  // status, top
void add_tick(CLI::App& app, Context& context);    // enqueue, tick
void add_dlq(CLI::App& app, Context& context);
void add_keys(CLI::App& app, Context& context);
void add_cron(CLI::App& app, Context& context);
void add_bench(CLI::App& app, Context& context);
void add_reference(CLI::App& app, Context& context);

/// One batch of one job, or of each job that has due items: `takt worker --once`.
struct OnceOptions {
  std::string job;
  int batch_size = 0;
  bool dry_run = false;
  bool json = false;
};
void run_once(Context& context, const OnceOptions& options);

/// Publishes one signed tick and waits for the broker's confirm; returns its id. CommandFailed if it is not confirmed.
std::string publish_tick(Context& context, const std::string& job, unsigned batch_size, bool dry_run);

}  // namespace takt
