#include <iostream>

#include "cli/commands.h"
#include "core/config/fields.h"

namespace takt {

namespace {

void print_help(const CLI::App& app, const std::string& path) {
  std::cout << "\n## `" << path << "`\n\n```\n" << app.get_formatter()->make_help(&app, path, CLI::AppFormatMode::Normal) << "```\n";
  for (const auto* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    print_help(*command, path + " " + command->get_name());
  }
}

}  // namespace

void add_reference(CLI::App& app, Context& /*context*/) {
  auto* reference = app.add_subcommand("reference", "print docs/configuration.md, or docs/commands.md");
  auto commands = std::make_shared<bool>(false);
  reference->add_flag("--commands", *commands, "every command's --help instead");
  reference->callback([&app, commands] {
    if (!*commands) {
      std::cout << configuration_reference();
      return;
    }
    std::cout
        << "# Commands\n\nEvery command's `--help`. This page is printed by `takt reference --commands`; a test keeps the two equal.\n\n"
           "Exit codes: 0 ok, 1 failed, 2 usage (arguments or takt.yaml).\n";
    print_help(app, "takt");
  });
}

}  // namespace takt
