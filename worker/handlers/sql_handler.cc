#include "worker/handlers/sql_handler.h"

#include <cstdlib>

namespace takt {

namespace {

/// One that cannot be connected to is away, without waiting for another twenty to find it so.
const CircuitConfig kCircuit{1, 100, std::chrono::seconds(1), std::chrono::seconds(30)};

/// From `first` on, all alike.
void block(std::vector<HandlerResult>& results, std::size_t first, HandlerResult result) {
  result.item_class = ItemClass::blocked;
  for (auto i = first; i < results.size(); ++i) results[i] = result;
}

HandlerResult blocked(std::string reason, std::string error) {
  HandlerResult result;
  result.reason = std::move(reason);
  result.error = std::move(error);
  return result;
}

}  // namespace

SqlHandler::SqlHandler(std::map<std::string, NamedDatabase> databases, const Clock& clock, Metrics& metrics)
    : configured_(std::move(databases)), clock_(clock), metrics_(metrics), circuits_(clock, false) {}
SqlHandler::~SqlHandler() = default;

/// Null if it is not declared here.
SqlTarget* SqlHandler::target(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = targets_.find(name); found != targets_.end()) return found->second.get();
  const auto configured = configured_.find(name);
  if (configured == configured_.end()) return nullptr;
  return (targets_[name] = std::make_unique<SqlTarget>(name, configured->second, clock_)).get();
}

Readiness SqlHandler::readiness(const JobDefinition& job) {
  const auto allowance = circuits_.allowance(destination_of(std::get<SqlHandlerConfig>(job.handler)), kCircuit);
  metrics_.circuit_open(job.name, allowance.state != CircuitBreaker::State::closed);
  return {allowance.items, allowance.pause};
}

JobCircuit SqlHandler::circuit(const JobDefinition& job) {
  return {&circuits_, destination_of(std::get<SqlHandlerConfig>(job.handler)), kCircuit};
}

std::string SqlHandler::lacks(const JobDefinition& job) const {
  const auto& name = std::get<SqlHandlerConfig>(job.handler).database;
  const auto declared = configured_.find(name);
  if (declared == configured_.end()) return "database " + name + " is not declared in its takt.yaml";
  const auto& variable = declared->second.url_env;
  const char* url = std::getenv(variable.c_str());
  if (url != nullptr && *url != '\0') return "";
  return "the environment variable " + variable + " (database " + name + ") is " + (url == nullptr ? "not set" : "empty");
}

SqlAnswer SqlHandler::execute(SqlTarget& target, const std::string& destination, CircuitBreaker::Pass pass, const BoundStatement& bound,
                              const ClaimedItem& item) {
  const auto began = std::chrono::steady_clock::now();
  SqlAnswer answer;
  try {
    answer = target.execute(bound, item);
  } catch (...) {  // nothing of the database's
    circuits_.end(destination, kCircuit, pass, true);
    throw;
  }
  circuits_.end(destination, kCircuit, pass, answer.reach != SqlReach::away, answer.result.error);
  if (answer.reach == SqlReach::away) answer.result.retry_after = circuits_.allowance(destination, kCircuit).pause;
  answer.result.seconds = seconds_between(began, std::chrono::steady_clock::now());
  return answer;
}

void SqlHandler::run(const RunContext& context, const std::vector<ClaimedItem>& items, std::vector<HandlerResult>& results) {
  const auto& config = std::get<SqlHandlerConfig>(context.job.handler);
  const auto bound = bind_statement(config.statement);
  if (bound.unknown) {  // of a definition that was stored before this was looked at
    return block(results, 0, blocked("sql_parameter", "the statement has the parameter " + *bound.unknown + "; there are $1 to $4"));
  }
  SqlTarget* where = target(config.database);
  if (where == nullptr) {
    return block(results, 0,
                 blocked("sql_database_unknown", "database " + config.database + " is not declared in this worker's takt.yaml"));
  }
  const auto destination = destination_of(config);
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (context.control.stopped() || std::chrono::steady_clock::now() >= context.deadline) return;
    const auto pass = circuits_.begin(destination, kCircuit);
    if (!pass) return;
    auto answer = execute(*where, destination, *pass, bound, items[i]);
    if (answer.reach == SqlReach::busy) return;
    if (answer.reach == SqlReach::refused) return block(results, i, std::move(answer.result));
    results[i] = std::move(answer.result);
    metrics_.handler_latency(context.job.name, results[i].seconds);
    if (answer.reach == SqlReach::away) return;
  }
}

}  // namespace takt
