#include <algorithm>
#include <csignal>
#include <iostream>

#include "cli/commands.h"
#include "cli/examples.h"
#include "cli/help.h"
#include "cli/table.h"
#include "core/db/migrator.h"
#include "core/process/version.h"
#include "core/text/text.h"

namespace {

/// Names a word that is no command, where one is expected, and the command it may have meant. Each level of commands that takes no
/// words of its own expects one.
void require_known_commands(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* level = &app;
  std::string path = "takt";
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto& word = words[i];
    const auto commands = level->get_subcommands([](const CLI::App*) { return true; });
    if (word == "--" || commands.empty()) return;
    if (word.starts_with("-")) {
      const auto* option = level->get_option_no_throw(word);
      if (option == nullptr) option = app.get_option_no_throw(word);
      if (option != nullptr && option->get_items_expected_max() > 0) ++i;
      continue;
    }
    const auto found = std::find_if(commands.begin(), commands.end(), [&](const CLI::App* command) { return command->get_name() == word; });
    if (found != commands.end()) {
      level = *found;
      path += " " + word;
      continue;
    }
    std::vector<std::string> known;
    for (const auto* command : commands) known.push_back(command->get_name());
    const auto meant = takt::nearest(word, known);
    throw takt::UsageError("no command \"" + path + " " + takt::printable(word, 60) + "\"" +
                           (meant.empty() ? "" : "; did you mean \"" + path + " " + meant + "\"?") + "; \"" + path +
                           " --help\" lists them");
  }
}

/// `takt help`, `takt help items`, `takt version`, as people type them.
std::vector<std::string> as_options(std::vector<std::string> words) {
  if (!words.empty() && words.front() == "help") {
    words.erase(words.begin());
    words.emplace_back("--help");
  } else if (!words.empty() && words.front() == "version") {
    words.front() = "--version";
  }
  return words;
}

int failed(const std::exception& error, int code) {
  const std::string_view text = error.what();
  std::cerr << (text.starts_with("takt: ") ? "" : "takt: ") << text << "\n";
  return code;
}

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int run(int argc, char** argv) {
  takt::Context context;
  CLI::App app{"Takt runs a company's background jobs: schedules, retries, dead letters.", "takt"};
  app.formatter(std::make_shared<takt::HelpFormatter>());
  app.set_version_flag("--version", "takt " + std::string(takt::takt_version()));
  app.add_option("--config", context.config_path, "the configuration file")->capture_default_str()->each([&](const std::string&) {
    context.config_named = true;
  });
  app.parse_complete_callback([&] { context.require_named_config(); });
  app.add_option("--log-level", context.log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_flag_callback("--wide", takt::print_wide, "tables with all columns and whole texts, whatever the terminal's width");
  app.add_flag("--log-json", context.log_json, "write logs as JSON, one object a line");
  app.require_subcommand(1);
  app.fallthrough();
  takt::add_migrate(app, context);
  takt::add_apply(app, context);
  takt::add_check(app, context);
  takt::add_services(app, context);
  takt::add_installation(app, context);
  takt::add_look(app, context);
  takt::add_items(app, context);
  takt::add_status(app, context);
  takt::add_top(app, context);
  takt::add_tick(app, context);
  takt::add_dlq(app, context);
  takt::add_quarantine(app, context);
  takt::add_audit(app, context);
  takt::add_keys(app, context);
  takt::add_cron(app, context);
  takt::add_bench(app, context);
  takt::add_reference(app, context);
  takt::add_examples(app);
  try {
    auto words = as_options({argv + 1, argv + argc});
    require_known_commands(app, words);
    std::reverse(words.begin(), words.end());  // as CLI11 takes them
    app.parse(words);
    return 0;
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : kUsage;
  } catch (const takt::FailureShown&) {
    return kFailed;
  } catch (const takt::UsageError& error) {
    return failed(error, kUsage);
  } catch (const takt::ConfigError& error) {
    std::cerr << error.what() << "\n";
    return kUsage;
  } catch (const std::exception& error) {
    return failed(error, kFailed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  static_cast<void>(std::signal(SIGPIPE, SIG_IGN));
  return run(argc, argv);
}
