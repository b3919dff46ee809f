#include "cli/installation_view.h"

#include <algorithm>
#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/text/text.h"

namespace takt {

namespace {

std::string state_of(const ServiceRow& service) {
  if (service.silent()) return "silent";
  if (!service.ready) return service.starting() ? "starting" : "not ready";
  return service.leading ? "leading" : "ready";
}

nlohmann::json as_json(const ServiceRow& service) {
  return {{"service", service.identity.name()},
          {"host", service.identity.host},
          {"pid", service.identity.pid},
          {"kind", service.identity.kind},
          {"roles", service.identity.roles},
          {"state", state_of(service)},
          {"detail", service.detail},
          {"version", service.identity.version},
          {"seen_s", service.unseen_s},
          {"up_s", service.age_s},
          {"runs", service.runs},
          {"places", service.places},
          {"queues", service.queues},
          {"keys", service.identity.keys}};
}

void list_services(Database& database, bool json) {
  const auto installation = read_installation(database);
  if (json) {
    std::cout << services_as_json(installation).dump(2) << "\n";
    return;
  }
  Table table({"service",
               "kind",
               "state",
               {"seen", 2},
               {"up", 1},
               {"pid", 2},
               {"version", 3},
               {"runs", 1},
               {"queues", 1},
               {"keys", 2},
               {"detail", 1}});
  for (const auto& service : installation.services) {
    table.add({service.identity.name(), service.identity.kind, state_of(service), short_age(service.unseen_s) + " ago",
               short_age(service.age_s), service.identity.pid, service.identity.version,
               service.places == 0 ? "-" : std::to_string(service.runs) + " of " + std::to_string(service.places),
               join(service.queues, ", "), join(service.identity.keys, ", "), service.detail});
  }
  table.print(false, "no service runs; start \"takt up\", or dispatcher, worker and dlq archive");
  for (const auto& one : troubles_of(installation)) std::cout << one.text << "\n";
}

void forget(Database& database, const std::string& name, const std::string& who, bool json) {
  const auto gone = forget_service(database, name.substr(0, name.find('@')), who);
  if (gone.empty())
    throw CommandFailed("no service \"" + printable(name, 100) + "\" is silent; one that lives goes by itself when it ends");
  say(json, {{"service", gone}, {"forgotten", true}}, "service " + gone + " forgotten");
}

void show_service(Database& database, const std::string& name, bool json) {
  const auto installation = read_installation(database);
  for (const auto& service : installation.services) {
    if (name != service.identity.id && name != service.identity.name()) continue;
    return print_object(as_json(service), json);
  }
  throw CommandFailed("no service \"" + printable(name, 100) +
                      "\" lives or went silent within the hour; \"takt services list\" lists those that did");
}

}  // namespace

nlohmann::json services_as_json(const Installation& installation) {
  auto list = nlohmann::json::array();
  for (const auto& service : installation.services) list.push_back(as_json(service));
  return list;
}

nlohmann::json troubles_as_json(const std::vector<Trouble>& troubles) {
  auto list = nlohmann::json::array();
  for (const auto& one : troubles)
    list.push_back({{"what", one.what}, {"about", one.about}, {"text", one.text}, {"meant", one.meant}, {"count", one.count}});
  return list;
}

std::string living_by_role(const Installation& installation) {
  std::string text;
  for (const auto& [role, plural] : {std::pair{"dispatcher", "dispatchers"}, {"worker", "workers"}, {"archive", "archives"}}) {
    int count = 0, runs = 0, places = 0;
    for (const auto& service : installation.services) {
      if (service.silent() || !service.does(role)) continue;
      ++count;
      runs += service.runs;
      places += service.places;
    }
    if (count == 0) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + (count == 1 ? role : plural);
    if (std::string_view(role) == "worker") text += " (" + std::to_string(runs) + " of " + std::to_string(places) + " runs)";
  }
  return text.empty() ? "none" : text;
}

void add_installation(CLI::App& app, Context& context) {
  auto* services =
      app.add_subcommand("services", "who is there: every process, where it runs, what it does, and what keeps work from being done");
  auto json = std::make_shared<bool>(false);
  add_listing(
      services, [json](CLI::App* command) { command->add_flag("--json", *json, "as JSON"); },
      [&context, json] { list_services(context.current_database(), *json); });
  add_showing<std::string>(services, "one process", "its id, or id@host, as the list and its log show it",
                           [&context](const std::string& name, bool as_json) { show_service(context.current_database(), name, as_json); });
  auto* command = services->add_subcommand("forget", "take a silent process off the list, because it is not to come back");
  struct Forgetting {
    std::string id, by;
    bool json = false;
  };
  auto forgetting = std::make_shared<Forgetting>();
  command->add_option("id", forgetting->id, "its id, or id@host")->required();
  command->add_option("--by", forgetting->by, "who is acting, for the audit; default: the login name");
  command->add_flag("--json", forgetting->json, "the outcome as JSON");
  command->callback(
      [&context, forgetting] { forget(context.current_database(), forgetting->id, Context::who(forgetting->by), forgetting->json); });
}

}  // namespace takt
