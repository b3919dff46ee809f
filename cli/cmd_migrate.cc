#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/services.h"
#include "core/amqp/topology.h"
#include "core/db/migrator.h"

namespace takt {

void add_migrate(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("migrate", "bring the database to this version and declare the broker's queues");
  auto database_only = std::make_shared<bool>(false);
  command->add_flag("--database-only", *database_only, "leave the broker alone");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "the outcome as JSON");
  command->callback([&context, database_only, json] {
    context.configure_logging("migrate");
    auto& said = *json ? std::cerr : std::cout;
    const auto report = migrate(context.database(), [&said](const std::string& name) { said << name << std::endl; });
    nlohmann::json outcome{{"schema_version", report.version},
                           {"migrations", report.applied},
                           {"functions", report.functions},
                           {"queues", nlohmann::json::array()}};
    said << "database: version " << report.version << (report.applied + report.functions == 0 ? ", nothing to do" : "") << "\n";
    const auto end = [json, &outcome] {
      if (*json) std::cout << outcome.dump() << "\n";
    };
    if (*database_only) return end();
    amqp::Channel channel(context.broker("takt migrate"));
    const auto& config = context.config_or_defaults();
    const auto queues = declare_queues(channel, config.worker.queues, config.queues());
    said << "broker: queues";
    for (const auto& queue : queues) outcome["queues"].push_back(amqp::tick_queue(queue));
    for (const auto& queue : {amqp::kDeadQueue, amqp::kQuarantineQueue}) outcome["queues"].push_back(queue);
    for (const auto& queue : outcome["queues"]) said << " " << queue.get<std::string>();
    said << "\n";
    end();
  });
}

}  // namespace takt
