#include <iostream>
#include <set>

#include "cli/commands.h"
#include "cli/status.h"
#include "core/amqp/topology.h"
#include "core/text.h"

namespace takt {

namespace {

/// What `--fail-on` may name.
const std::set<std::string> kKinds{"any",     "no_leader", "no_worker", "no_archive", "silent", "not_ready",  "key", "held",
                                   "failing", "blocked",   "paused",    "set_aside",  "late",   "quarantine", "dead"};

std::set<std::string> kinds_of(const std::string& given) {
  std::set<std::string> kinds;
  for (const auto word : split(given, ',')) {
    const std::string kind(trim(word));
    if (!kKinds.contains(kind))
      throw UsageError("--fail-on: \"" + printable(kind, 40) + "\" is none of " + join({kKinds.begin(), kKinds.end()}, ", "));
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
  const auto quarantined = status.installation.waiting.find(amqp::kQuarantineQueue);
  if (asked("quarantine") && quarantined != status.installation.waiting.end() && quarantined->second > 0) return true;
  return std::any_of(status.troubles.begin(), status.troubles.end(),
                     [&](const Trouble& one) { return kinds.contains(one.what) || (kinds.contains("any") && !one.meant); });
}

}  // namespace

void add_status(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("status", "what is going on: who leads, what keeps work from being done, backlog, failures");
  auto json = std::make_shared<bool>(false);
  auto fail_on = std::make_shared<std::string>();
  command->add_flag("--json", *json, "as JSON");
  command->add_option(
      "--fail-on", *fail_on,
      "exit 1 if there is one of these, with commas between: any, no_leader, no_worker, no_archive, silent, not_ready, key, "
      "held, failing, blocked, paused, set_aside, late (schedules), quarantine, dead (letters that are open); any: all but paused and "
      "dead");
  command->callback([&context, json, fail_on] {
    const auto kinds = fail_on->empty() ? std::set<std::string>{} : kinds_of(*fail_on);
    const auto status = read_status(context.current_database());
    if (*json) {
      std::cout << status_as_json(status).dump(2) << "\n";
    } else {
      std::cout << status_head(status) << "\n";
      status_table(status.jobs).print(false, "no jobs; define some in takt.yaml and run \"takt apply\"");
      std::cout << status_foot(status);
    }
    if (fails(status, kinds)) throw FailureShown{};
  });
}

}  // namespace takt
