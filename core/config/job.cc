#include "core/config/job.h"

namespace takt {

namespace {

using nlohmann::json;

std::int64_t ms(Duration duration) { return duration.count(); }
Duration from_ms(const json& value) { return Duration(value.get<std::int64_t>()); }

json backoff_to_json(const Backoff& backoff) {
  json list = json::array();
  for (const auto pause : backoff.list) list.push_back(ms(pause));
  return {{"list_ms", list},
          {"base_ms", ms(backoff.base)},
          {"factor", backoff.factor},
          {"max_ms", ms(backoff.max)},
          {"full_jitter", backoff.full_jitter}};
}

Backoff backoff_from_json(const json& value) {
  Backoff backoff;
  for (const auto& pause : value.at("list_ms")) backoff.list.push_back(from_ms(pause));
  backoff.base = from_ms(value.at("base_ms"));
  backoff.factor = value.at("factor");
  backoff.max = from_ms(value.at("max_ms"));
  backoff.full_jitter = value.at("full_jitter");
  return backoff;
}

json handler_to_json(const HandlerConfig& handler) {
  if (const auto* http = std::get_if<HttpHandlerConfig>(&handler)) {
    return {{"http",
             {{"url", http->url},
              {"method", http->method},
              {"headers", http->headers},
              {"bearer_env", http->bearer_env},
              {"timeout_ms", ms(http->timeout)},
              {"connect_timeout_ms", ms(http->connect_timeout)},
              {"parallel", http->parallel},
              {"max_response", http->max_response},
              {"ca_file", http->ca_file},
              {"circuit",
               {{"failures", http->circuit.failures},
                {"rate", http->circuit.rate},
                {"pause_ms", ms(http->circuit.pause)},
                {"max_pause_ms", ms(http->circuit.max_pause)}}}}}};
  }
  if (const auto* native = std::get_if<NativeHandlerConfig>(&handler)) return {{"native", {{"name", native->name}}}};
  const auto& sql = std::get<SqlHandlerConfig>(handler);
  return {{"sql", {{"database", sql.database}, {"statement", sql.statement}}}};
}

HandlerConfig handler_from_json(const json& value) {
  if (const auto found = value.find("http"); found != value.end()) {
    HttpHandlerConfig http;
    http.url = found->at("url");
    http.method = found->at("method");
    http.headers = found->at("headers").get<std::map<std::string, std::string>>();
    http.bearer_env = found->at("bearer_env");
    http.timeout = from_ms(found->at("timeout_ms"));
    http.connect_timeout = from_ms(found->at("connect_timeout_ms"));
    http.parallel = found->at("parallel");
    http.max_response = found->at("max_response");
    http.ca_file = found->at("ca_file");
    if (const auto circuit = found->find("circuit"); circuit != found->end()) {  // stored by versions that have it
      http.circuit = {circuit->at("failures"), circuit->at("rate"), from_ms(circuit->at("pause_ms")), from_ms(circuit->at("max_pause_ms"))};
    }
    return http;
  }
  if (const auto found = value.find("native"); found != value.end()) return NativeHandlerConfig{found->at("name")};
  const auto& sql = value.at("sql");
  return SqlHandlerConfig{sql.at("database"), sql.at("statement")};
}

}  // namespace

json job_to_json(const JobDefinition& job) {
  return {{"queue", job.queue},
          {"handler", handler_to_json(job.handler)},
          {"batch_size", job.batch_size},
          {"time_budget_ms", ms(job.time_budget)},
          {"lease_ms", ms(job.lease)},
          {"max_attempts", job.max_attempts},
          {"max_age_ms", job.max_age ? json(ms(*job.max_age)) : json(nullptr)},
          {"backoff", backoff_to_json(job.backoff)},
          {"dedupe_window_ms", ms(job.dedupe_window)},
          {"concurrency", job.concurrency},
          {"drain", job.drain},
          {"item_per_tick", job.item_per_tick}};
}

JobDefinition job_from_json(const std::string& name, const json& value) {
  JobDefinition job;
  job.name = name;
  job.queue = value.at("queue");
  job.handler = handler_from_json(value.at("handler"));
  job.batch_size = value.at("batch_size");
  job.time_budget = from_ms(value.at("time_budget_ms"));
  job.lease = from_ms(value.at("lease_ms"));
  job.max_attempts = value.at("max_attempts");
  if (!value.at("max_age_ms").is_null()) job.max_age = from_ms(value.at("max_age_ms"));
  job.backoff = backoff_from_json(value.at("backoff"));
  job.dedupe_window = from_ms(value.at("dedupe_window_ms"));
  job.concurrency = value.at("concurrency");
  job.drain = value.at("drain");
  job.item_per_tick = value.at("item_per_tick");
  return job;
}

std::string to_string(MisfirePolicy policy) {
  switch (policy) {
    case MisfirePolicy::skip: return "skip";
    case MisfirePolicy::once: return "once";
    case MisfirePolicy::all: return "all";
  }
  return "?";
}

std::optional<MisfirePolicy> parse_misfire(std::string_view text) {
  if (text == "skip") return MisfirePolicy::skip;
  if (text == "once") return MisfirePolicy::once;
  if (text == "all") return MisfirePolicy::all;
  return std::nullopt;
}

}  // namespace takt
