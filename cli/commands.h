#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cli/context.h"

namespace takt {

// Each adds its commands to the parser; their callbacks throw CommandFailed, UsageError, or what the parts throw.
void add_migrate(CLI::App& app, Context& context);
void add_apply(CLI::App& app, Context& context);
void add_check(CLI::App& app, Context& context);
void add_services(CLI::App& app, Context& context);      // dispatcher, worker, up
void add_installation(CLI::App& app, Context& context);  // services
void add_look(CLI::App& app, Context& context);          // jobs, schedules, runs
void add_items(CLI::App& app, Context& context);
void add_status(CLI::App& app, Context& context);
void add_top(CLI::App& app, Context& context);
void add_tick(CLI::App& app, Context& context);  // enqueue, tick
void add_quarantine(CLI::App& app, Context& context);
void add_audit(CLI::App& app, Context& context);
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

/// CommandFailed unless a job of this name is there, or was; it names the one that may be meant. For a filter that found nothing: a
/// typing error must not read as calm.
void require_job(Database& database, const std::string& name);

/// The same, of a job that was removed as well: why there is none of this name now.
CommandFailed no_job(Database& database, const std::string& name);

/// What an act came to, in one line: for people the text, for programs the outcome.
void say(bool json, const nlohmann::json& outcome, const std::string& text);

/// An option's text; empty: it was not given.
std::optional<std::string> optional_text(const std::string& text);

/// `parent` without a verb, and its verb `list`: both with these options, which are theirs together.
void add_listing(CLI::App* parent, const std::function<void(CLI::App*)>& add_options, const std::function<void()>& list);

/// The verb `show ID [--json]`.
template <typename Id>
void add_showing(CLI::App* parent, const std::string& what, const std::string& id_is, const std::function<void(const Id&, bool)>& show) {
  auto* command = parent->add_subcommand("show", what);
  auto id = std::make_shared<Id>();
  auto json = std::make_shared<bool>(false);
  command->add_option("id", *id, id_is)->required();
  command->add_flag("--json", *json, "as JSON");
  command->callback([id, json, show] { show(*id, *json); });
}

struct TickOptions {
  std::string job;
  unsigned batch_size = 0;  ///< 0: the job's own
  bool dry_run = false, json = false;
};
/// Publishes one signed tick, waits for the broker's confirm and says so, and where its job is paused that nothing comes of it until
/// it is resumed. CommandFailed if it is not confirmed.
void publish_tick(Context& context, const TickOptions& options);

}  // namespace takt
