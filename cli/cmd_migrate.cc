#include <iostream>

#include "cli/commands.h"
#include "cli/services.h"
#include "core/amqp/topology.h"
#include "core/db/migrator.h"

namespace takt {

void add_migrate(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("migrate", "bring the database to this version and declare the broker's queues");
  auto database_only = std::make_shared<bool>(false);
  command->add_flag("--database-only", *database_only, "leave the broker alone");
  command->callback([&context, database_only] {
    context.configure_logging("migrate");
    const auto report = migrate(context.database(), [](const std::string& name) { std::cout << name << std::endl; });
    std::cout << "database: version " << report.version << (report.applied == 0 ? ", nothing to do" : "") << "\n";
    if (*database_only) return;
    amqp::Channel channel(context.broker("takt migrate"));
    const auto& config = context.config_or_defaults();
    const auto queues = declare_queues(channel, config.worker.queues, config.queues());
    std::cout << "broker: queues";
    for (const auto& queue : queues) std::cout << " " << amqp::tick_queue(queue);
    std::cout << " " << amqp::kDeadQueue << " " << amqp::kQuarantineQueue << "\n";
  });
}

}  // namespace takt
