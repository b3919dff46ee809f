#include <iostream>

#include "cli/commands.h"
#include "core/config/apply.h"
#include "core/text/text.h"

namespace takt {

namespace {

void print_json(const std::vector<DefinitionChange>& changes) {
  auto list = nlohmann::json::array();
  for (const auto& change : changes) {
    list.push_back({{"sign", std::string(1, change.sign)}, {"subject", change.subject}, {"detail", change.detail}});
    if (!change.backlog) continue;
    list.back().update({{"waiting", change.backlog->waiting},
                        {"blocked", change.backlog->blocked},
                        {"running", change.backlog->running},
                        {"ticks", change.backlog->ticks},
                        {"cancelled", change.cancelled},
                        {"not_cancelled", change.not_cancelled},
                        {"is_back", change.is_back}});
  }
  std::cout << list.dump(2) << "\n";
}

void print_text(const std::vector<DefinitionChange>& changes, bool nothing_changed) {
  for (const auto& change : changes) {
    std::cout << change.sign << " " << change.subject << (change.detail.empty() ? "" : ": " + change.detail) << "\n";
  }
  std::cout << changes.size() << (changes.size() == 1 ? " difference" : " differences")
            << (changes.empty()   ? ""
                : nothing_changed ? ", nothing changed"
                                  : ", applied")
            << "\n";
}

/// Why an apply that was not told to prune removes nothing; empty if it would not.
std::string refusal(const std::vector<DefinitionChange>& changes) {
  const auto jobs = removed_jobs(changes);
  if (jobs.empty()) return "";
  return "the file does not name " + (jobs.size() == 1 ? "a job" : std::to_string(jobs.size()) + " jobs") + " that the database has (" +
         join(jobs, ", ") +
         "). Is it the right file? Give --prune to remove what it does not name: items stay, and run once a job of that name is applied "
         "again; with --cancel-items, too, what waits is cancelled. A job that was renamed is a new one: its items stay with the old name";
}

/// The definitions are applied; some items are not cancelled.
std::string uncancelled(const std::vector<DefinitionChange>& changes) {
  std::string text;
  bool to_be_ended = false;
  for (const auto& change : changes) {
    if (change.not_cancelled.empty()) continue;
    text += (text.empty() ? "the file is applied, but not all items are cancelled: " : "; ") + change.backlog->job + " (" +
            change.not_cancelled + ")";
    to_be_ended |= !change.is_back;
  }
  return to_be_ended ? text + ". \"takt items cancel --job JOB\" ends what is left of a removed job" : text;
}

}  // namespace

void add_apply(CLI::App& app, Context& context) {
  struct Options {
    bool dry_run = false, json = false, prune = false, cancel_items = false;
    std::string by;
  };
  auto options = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("apply", "make the definitions in the database match the file; running services follow within a second");
  command->add_flag("--dry-run", options->dry_run, "show the difference and change nothing");
  auto* prune = command->add_flag("--prune", options->prune,
                                  "remove jobs that the file does not name; their items stay until a job of that name is applied again");
  command
      ->add_flag("--cancel-items", options->cancel_items,
                 "with --prune: items of jobs that are removed are cancelled; those running end by themselves")
      ->needs(prune);
  command->add_flag("--json", options->json, "the difference as JSON");
  command->add_option("--by", options->by, "who is acting, for the audit; default: the login name");
  command->callback([&context, options] {
    context.configure_logging("apply");
    const auto& config = context.config();
    if (config.jobs.empty() && !(config.has_jobs_section && options->prune)) {
      throw CommandFailed("nothing was applied: " + context.config_path +
                          " names no jobs. Is it the right file? To remove every job, write \"jobs: {}\" and give --prune");
    }
    const auto removal = options->cancel_items ? Removal::cancel : options->prune ? Removal::prune : Removal::refuse;
    const auto changes = apply_definitions(context.current_database(), config, Context::who(options->by), options->dry_run, removal);
    const auto refused = removal == Removal::refuse ? refusal(changes) : "";
    if (options->json)
      print_json(changes);
    else
      print_text(changes, options->dry_run || !refused.empty());
    if (const auto left = uncancelled(changes); !left.empty()) throw CommandFailed(left);
    if (!refused.empty() && options->dry_run)
      std::cerr << refused << "\n";
    else if (!refused.empty())
      throw CommandFailed("nothing was applied: " + refused);
  });
}

}  // namespace takt
