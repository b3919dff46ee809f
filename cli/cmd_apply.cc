#include <iostream>

#include "cli/commands.h"
#include "core/config/apply.h"

namespace takt {

namespace {

constexpr auto kRefused =
    "jobs that the file no longer names have items. Give --leave-items (they stay, and run once a job of that name is applied again) or "
    "--cancel-items (what waits is cancelled). A job that was renamed is a new one: the items stay with the old name";

void print_json(const std::vector<DefinitionChange>& changes) {
  auto list = nlohmann::json::array();
  for (const auto& change : changes) {
    list.push_back({{"sign", std::string(1, change.sign)}, {"subject", change.subject}, {"detail", change.detail}});
    if (!change.backlog) continue;
    list.back().update({{"waiting", change.backlog->waiting},
                        {"blocked", change.backlog->blocked},
                        {"running", change.backlog->running},
                        {"ticks", change.backlog->ticks}});
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
    bool dry_run = false, json = false, leave_items = false, cancel_items = false;
    std::string by;
  };
  auto options = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("apply", "make the definitions in the database match the file; running services follow within a second");
  command->add_flag("--dry-run", options->dry_run, "show the difference and change nothing");
  auto* leave = command->add_flag("--leave-items", options->leave_items,
                                  "items of jobs that are removed stay, and run once a job of that name is applied again");
  command
      ->add_flag("--cancel-items", options->cancel_items, "items of jobs that are removed are cancelled; those running end by themselves")
      ->excludes(leave);
  command->add_flag("--json", options->json, "the difference as JSON");
  command->add_option("--by", options->by, "who is acting, for the audit; default: the login name");
  command->callback([&context, options] {
    context.configure_logging("apply");
    const auto& config = context.config();
    const auto leftovers = options->leave_items ? Leftovers::leave : options->cancel_items ? Leftovers::cancel : Leftovers::refuse;
    const auto changes = apply_definitions(context.current_database(), config, Context::who(options->by), options->dry_run, leftovers);
    const bool refused = leftovers == Leftovers::refuse && removes_items(changes);
    if (options->json)
      print_json(changes);
    else
      print_text(changes, options->dry_run || refused);
    if (const auto left = uncancelled(changes); !left.empty()) throw CommandFailed(left);
    if (refused && options->dry_run)
      std::cerr << kRefused << "\n";
    else if (refused)
      throw CommandFailed(std::string("nothing was applied: ") + kRefused);
  });
}

}  // namespace takt
