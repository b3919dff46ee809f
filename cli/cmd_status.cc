#include <algorithm>
#include <iostream>
#include <set>

#include "cli/commands.h"
#include "cli/status.h"
#include "core/amqp/topology.h"
#include "core/text/text.h"

namespace takt {

namespace {

/// What `--fail-on` may name.
std::vector<std::string> known_kinds() {
  std::vector<std::string> kinds{"any"};
  kinds.insert(kinds.end(), kTroubleKinds.begin(), kTroubleKinds.end());
  kinds.insert(kinds.end(), {"set_aside", "late", "quarantine", "dead"});
  return kinds;
}

std::set<std::string> kinds_of(const std::string& given) {
  const auto known = known_kinds();
  std::set<std::string> kinds;
  for (const auto word : split(given, ',')) {
    const std::string kind(trim(word));
    if (std::find(known.begin(), known.end(), kind) == known.end())
      throw UsageError("--fail-on: \"" + printable(kind, 40) + "\" is none of " + join(known, ", "));
    kinds.insert(kind);
  }
  return kinds;
}

/// Whether there is what the caller's exit code is to tell. `any`: every trouble that nobody meant.
bool fails(const Status& status, const std::set<std::string>& kinds) {
  const auto asked = [&](const char* kind) { return kinds.contains(kind) || kinds.contains("any"); };
  if (kinds.contains("dead") && status.dead_letters_open > 0) return true;
  if (asked("set_aside") && !status.faults.empty()) return true;
  if (asked("late") && status.schedules_late > 0) return true;
  if (asked("quarantine") && status.installation.waiting_in(amqp::kQuarantineQueue).value_or(0) > 0) return true;
  return std::any_of(status.troubles.begin(), status.troubles.end(),
                     [&](const Trouble& one) { return kinds.contains(one.what) || (kinds.contains("any") && !one.meant); });
}

}  // namespace

void add_status(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("status", "what is going on: who leads, what keeps work from being done, backlog, failures");
  auto json = std::make_shared<bool>(false);
  auto fail_on = std::make_shared<std::string>();
  command->add_flag("--json", *json, "as JSON");
  command->add_option("--fail-on", *fail_on,
                      "exit 1 if there is one of these, with commas between: " + join(known_kinds(), ", ") +
                          "; late is of schedules, dead of letters that are open; any: all but paused and dead");
  command->callback([&context, json, fail_on] {
    const auto kinds = fail_on->empty() ? std::set<std::string>{} : kinds_of(*fail_on);
    const auto status = read_status(context.current_database());
    if (*json) {
      std::cout << status_as_json(status).dump(2) << "\n";
    } else {
      std::cout << status_head(status, true) << "\n";
      status_table(status.jobs).print(false, "no jobs; define some in takt.yaml and run \"takt apply\"");
      std::cout << status_foot(status);
    }
    if (fails(status, kinds)) throw FailureShown{};
  });
}

}  // namespace takt
