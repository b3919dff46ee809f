#include <iostream>

#include "cli/commands.h"
#include "core/config/apply.h"

namespace takt {

void add_apply(CLI::App& app, Context& context) {
  struct Options {
    bool dry_run = false, json = false;
    std::string by;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("apply", "make the definitions in the database match the file");
  command->add_flag("--dry-run", options->dry_run, "show the difference and change nothing");
  command->add_flag("--json", options->json, "the difference as JSON");
  command->add_option("--by", options->by, "who is acting, for the audit; default: the login name");
  command->callback([&context, options] {
    context.configure_logging("apply");
    const auto& config = context.config();
    const auto changes = apply_definitions(context.current_database(), config, Context::who(options->by), options->dry_run);
    if (options->json) {
      auto list = nlohmann::json::array();
      for (const auto& change : changes) {
        list.push_back({{"sign", std::string(1, change.sign)}, {"subject", change.subject}, {"detail", change.detail}});
      }
      std::cout << list.dump(2) << "\n";
      return;
    }
    for (const auto& change : changes) {
      std::cout << change.sign << " " << change.subject << (change.detail.empty() ? "" : ": " + change.detail) << "\n";
    }
    std::cout << changes.size() << (changes.size() == 1 ? " difference" : " differences")
              << (changes.empty()    ? ""
                  : options->dry_run ? ", nothing changed"
                                     : ", applied")
              << "\n";
  });
}

}  // namespace takt
