#include <date/tz.h>

#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/text/text.h"
#include "core/time/cron.h"

namespace takt {

namespace {

struct NextOptions {
  std::string expression, zone = "UTC", from;
  int count = 5;
  bool json = false;
};

std::string local_text(Timestamp time, const std::string& zone) {
  const date::sys_seconds seconds{std::chrono::floor<std::chrono::seconds>(time.time_since_epoch())};
  return date::format("%a %F %T %Z", date::make_zoned(zone, seconds));
}

void print_next(const NextOptions& options) {
  const auto parsed = Cron::parse(options.expression, options.zone);
  if (const auto* error = std::get_if<CronError>(&parsed)) {
    throw UsageError("cron: " + error->message + "\n  " + options.expression + "\n  " + std::string(error->position, ' ') + "^");
  }
  const auto& cron = std::get<Cron>(parsed);
  Timestamp at = options.from.empty() ? SystemClock().now() : parse_moment(options.from, "--from", [] { return SystemClock().now(); });
  Table table({"at", "local"});
  for (int i = 0; i < options.count; ++i) {
    const auto next = cron.next(at);
    if (!next) break;
    table.add({format_rfc3339(*next), local_text(*next, cron.zone())});
    at = *next;
  }
  table.print(options.json, "never");
}

}  // namespace

void add_cron(CLI::App& app, Context& /*context*/) {
  auto* cron = app.add_subcommand("cron", "cron expressions");
  cron->require_subcommand(1);
  auto options = std::make_shared<NextOptions>();
  auto* next = cron->add_subcommand("next", "the next fire times of an expression");
  next->add_option("expression", options->expression, "in quotes, such as \"0 9 * * 1-5\"")->required();
  next->add_option("--zone", options->zone, "IANA time zone")->capture_default_str();
  next->add_option("--from", options->from, "after this time; default: now");
  next->add_option("--count", options->count, "how many")->check(CLI::Range(1, 10000))->capture_default_str();
  next->add_flag("--json", options->json, "as JSON");
  next->callback([options] { print_next(*options); });
}

}  // namespace takt
