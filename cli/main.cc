#include <csignal>
#include <iostream>

#include "cli/commands.h"
#include "core/db/migrator.h"

namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int run(int argc, char** argv) {
  takt::Context context;
  CLI::App app{"Takt runs a company's background jobs: schedules, retries, dead letters.", "takt"};
  app.set_version_flag("--version", "takt " TAKT_VERSION);
  app.add_option("--config", context.config_path, "the configuration file")->capture_default_str()->each([&](const std::string&) {
    context.config_named = true;
  });
  app.parse_complete_callback([&] { context.require_named_config(); });
  app.add_option("--log-level", context.log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_flag("--log-json", context.log_json, "write logs as JSON, one object a line");
  app.require_subcommand(1);
  app.fallthrough();
  takt::add_migrate(app, context);
  takt::add_apply(app, context);
  takt::add_check(app, context);
  takt::add_services(app, context);
  takt::add_look(app, context);
  takt::add_items(app, context);
  takt::add_status(app, context);
  takt::add_tick(app, context);
  takt::add_dlq(app, context);
  takt::add_keys(app, context);
  takt::add_cron(app, context);
  takt::add_bench(app, context);
  takt::add_reference(app, context);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : kUsage;
  } catch (const takt::FailureShown&) {
    return kFailed;
  } catch (const takt::UsageError& error) {
    std::cerr << "takt: " << error.what() << "\n";
    return kUsage;
  } catch (const takt::ConfigError& error) {
    std::cerr << error.what() << "\n";
    return kUsage;
  } catch (const std::exception& error) {
    std::cerr << "takt: " << error.what() << "\n";
    return kFailed;
  }
}

}  // namespace

int main(int argc, char** argv) {
  static_cast<void>(std::signal(SIGPIPE, SIG_IGN));
  return run(argc, argv);
}
