#include "core/config/config.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>

#include "core/amqp/topology.h"
#include "core/config/reader.h"
#include "core/db/bound_statement.h"
#include "core/http/url.h"
#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "core/tick/tick.h"
#include "core/time/cron.h"

namespace takt {

namespace {

constexpr std::size_t kMaxConfigBytes = 4 * 1024 * 1024;
constexpr std::size_t kMaxSchedulePayloadBytes = 64 * 1024;

/// Why a handler's URL cannot be used, or empty.
std::string url_fault(const std::string& text) {
  const auto url = parse_url(text);
  if (!url) return "is not a URL that begins with http:// or https://";
  if (url->scheme != "http" && url->scheme != "https") return "has the scheme " + url->scheme + "; http and https are allowed";
  if (url->has_user) return "holds user information; use bearer_env";
  return "";
}

OutboundPolicy read_outbound(SectionReader& worker) {
  const auto allow = worker.texts("outbound_allow"), deny = worker.texts("outbound_deny");
  for (const auto& [key, rules] : {std::pair{"outbound_allow", &allow}, std::pair{"outbound_deny", &deny}}) {
    try {
      OutboundPolicy(*rules, {});
    } catch (const std::invalid_argument& error) {
      worker.fault(key, error.what());
      return {};
    }
  }
  return {allow, deny};
}

HttpHandlerConfig read_http(SectionReader section) {
  HttpHandlerConfig http;
  http.url = section.text("url");
  if (section.has("url")) {
    // The value itself is not shown where it may hold a password.
    if (const auto fault = url_fault(http.url); !fault.empty()) section.fault("url", "the URL " + fault);
  }
  http.method = section.text("method");
  http.headers = section.headers("headers");
  http.bearer_env = section.text("bearer_env");
  http.timeout = section.duration("timeout");
  http.connect_timeout = section.duration("connect_timeout");
  http.parallel = static_cast<int>(section.integer("parallel"));
  http.max_response = section.integer("max_response");
  http.ca_file = section.text("ca_file");
  http.circuit = {static_cast<int>(section.integer("circuit_failures")), static_cast<int>(section.integer("circuit_rate")),
                  section.duration("circuit_pause"), section.duration("circuit_max_pause")};
  return http;
}

SqlHandlerConfig read_sql(SectionReader section, const std::map<std::string, NamedDatabase>& databases) {
  SqlHandlerConfig sql{section.text("database"), section.text("statement")};
  if (!sql.database.empty() && !databases.contains(sql.database)) {
    section.fault("database", "\"" + printable(sql.database, 60) + "\" is not declared under databases");
  }
  if (const auto unknown = bind_statement(sql.statement).unknown) {
    section.fault("statement",
                  printable(*unknown, 20) + " is not one of its parameters; there are $1 payload, $2 key, $3 item id and $4 attempt");
  }
  return sql;
}

/// "12: not YAML: …", in words for what people write most often and YAML's own words do not tell.
std::string not_yaml(const std::string& text, const YAML::Exception& error) {
  const auto lines = split(text, '\n');
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto first = lines[i].find_first_not_of(' ');
    if (first != std::string_view::npos && lines[i][first] == '\t' && !trim(lines[i]).empty())
      return std::to_string(i + 1) + ": not YAML: a tab at the line's beginning; indent with spaces";
  }
  const auto line = static_cast<std::size_t>(std::max(error.mark.line, 0));
  if (line < lines.size() && lines[line].find(": *") != std::string_view::npos) {
    const auto value = trim(lines[line].substr(lines[line].find(": *") + 2));
    return std::to_string(line + 1) + ": not YAML: a value that begins with * is a reference; put it in quotes: \"" +
           printable(value.substr(0, value.find_first_of(",}#")), 60) + "\"";
  }
  return std::to_string(line + 1) + ": not YAML: " + printable(error.msg, 200);
}

Backoff read_backoff(const YAML::Node& node, const std::string& path, YAML::Mark parent, Faults& faults) {
  Backoff backoff;
  YAML::Node as_section;
  if (node.IsDefined() && node.IsSequence()) {  // the short form
    as_section["list"] = node;
  } else {
    as_section.reset(node);  // plain assignment would write through to the document
  }
  SectionReader section("jobs.<name>.backoff", as_section, path, parent, faults);
  backoff.list = section.durations("list");
  backoff.base = section.duration("base");
  backoff.factor = section.number("factor");
  backoff.max = section.duration("max");
  const auto jitter = section.text("jitter");
  backoff.full_jitter = jitter.empty() ? backoff.list.empty() : jitter == "full";
  if (backoff.max < backoff.base) section.fault("max", "shorter than base");
  for (const char* unused : {"base", "factor", "max"}) {
    if (!backoff.list.empty() && section.has(unused)) section.fault(unused, "has no effect beside list; leave one of both out");
  }
  return backoff;
}

ScheduleDefinition read_schedule(SectionReader section) {
  ScheduleDefinition schedule;
  schedule.name = section.text("name");
  schedule.time_zone = section.text("time_zone");
  schedule.misfire = *parse_misfire(section.text("misfire"));
  schedule.misfire_after = section.duration("misfire_after");
  schedule.misfire_limit = static_cast<int>(section.integer("misfire_limit"));
  schedule.misfire_max_age = section.duration("misfire_max_age");
  schedule.jitter = section.duration("jitter");
  schedule.payload = section.json("payload");
  if (!std::holds_alternative<std::string>(exact_json(schedule.payload, kMaxSchedulePayloadBytes)))
    section.fault("payload", "larger than 64 KiB as PostgreSQL prints it, or holds a number of more than 1,000 digits");
  if (section.has("cron") == section.has("run_at")) {
    section.fault("cron", "give either cron or run_at");
    return schedule;
  }
  if (section.has("run_at")) {
    schedule.cron = "@at " + section.text("run_at");
    if (!parse_rfc3339(section.text("run_at"))) section.fault("run_at", "not a time such as 2026-12-24T18:00:00Z");
    return schedule;
  }
  schedule.cron = section.text("cron");
  if (!is_time_zone(schedule.time_zone)) {
    section.fault("time_zone", "\"" + printable(schedule.time_zone, 60) + "\" is not a time zone; use a name such as Europe/Madrid or UTC");
  } else if (const auto parsed = Cron::parse(schedule.cron, schedule.time_zone); const auto* error = std::get_if<CronError>(&parsed)) {
    section.fault("cron",
                  "\"" + printable(schedule.cron, 120) + "\", character " + std::to_string(error->position + 1) + ": " + error->message);
  }
  return schedule;
}

void read_schedules(SectionReader& job_section, JobDefinition& job, Faults& faults) {
  if (!job_section.has("schedules")) return;
  const auto node = job_section.node("schedules");
  if (!node.IsSequence()) return job_section.fault("schedules", "a list (- name: …) is needed");
  std::set<std::string> names;
  for (std::size_t i = 0; i < node.size(); ++i) {
    const std::string path = job_section.path("schedules") + "[" + std::to_string(i) + "]";
    SectionReader section("jobs.<name>.schedules[]", node[i], path, node.Mark(), faults);
    auto schedule = read_schedule(section);
    if (!names.insert(schedule.name).second) section.fault("name", "\"" + printable(schedule.name, 60) + "\" is used twice in this job");
    job.schedules.push_back(std::move(schedule));
  }
}

JobDefinition read_job(const std::string& name, SectionReader section, const Config& config, Faults& faults) {
  JobDefinition job;
  job.name = name;
  job.queue = section.text("queue");
  job.batch_size = static_cast<int>(section.integer("batch_size"));
  job.time_budget = section.duration("time_budget");
  job.lease = section.duration("lease");
  job.max_attempts = static_cast<int>(section.integer("max_attempts"));
  job.max_age = section.optional_duration("max_age");
  job.backoff = read_backoff(section.node("backoff"), section.path("backoff"), section.mark(), faults);
  job.dedupe_window = section.duration("dedupe_window");
  job.concurrency = static_cast<int>(section.integer("concurrency"));
  job.drain = section.boolean("drain");
  read_schedules(section, job, faults);
  job.item_per_tick = section.optional_boolean("item_per_tick").value_or(!job.schedules.empty());

  if (!section.has("handler")) return job;
  SectionReader handler("jobs.<name>.handler", section.node("handler"), section.path("handler"), section.mark("handler"), faults);
  if (handler.has("http") + handler.has("sql") + handler.has("native") != 1) {
    section.fault("handler", "exactly one of http, sql, native is needed");
  } else if (handler.has("http")) {
    job.handler = read_http({"jobs.<name>.handler.http", handler.node("http"), handler.path("http"), handler.mark("http"), faults});
  } else if (handler.has("native")) {
    SectionReader native("jobs.<name>.handler.native", handler.node("native"), handler.path("native"), handler.mark("native"), faults);
    job.handler = NativeHandlerConfig{native.text("name")};
  } else {
    job.handler =
        read_sql({"jobs.<name>.handler.sql", handler.node("sql"), handler.path("sql"), handler.mark("sql"), faults}, config.databases);
  }
  return job;
}

void read_services(SectionReader& top, Config& config, Faults& faults) {
  const auto open = [&](const char* key) { return SectionReader(key, top.node(key), key, top.mark(), faults); };
  auto database = open("database");
  config.database = {static_cast<int>(database.integer("pool")), database.duration("connect_timeout"),
                     database.duration("statement_timeout"), database.duration("lock_timeout"), database.text("pooler") == "transaction"};
  auto broker = open("broker");
  config.broker = {broker.duration("heartbeat"), broker.duration("connect_timeout"), broker.duration("confirm_timeout"),
                   static_cast<int>(broker.integer("window")), broker.text("ca_file")};
  auto dispatcher = open("dispatcher");
  config.dispatcher = {dispatcher.duration("scan_interval"), dispatcher.duration("leader_lease"), dispatcher.duration("republish_after"),
                       static_cast<int>(dispatcher.integer("parallel_ticks"))};
  auto worker = open("worker");
  config.worker = {static_cast<int>(worker.integer("runs")),
                   worker.duration("grace"),
                   worker.duration("max_tick_age"),
                   worker.names("queues"),
                   static_cast<int>(worker.integer("host_connections")),
                   static_cast<int>(worker.integer("http_threads")),
                   worker.boolean("payload_in_errors"),
                   read_outbound(worker)};
  auto metrics = open("metrics");
  config.metrics = {metrics.text("listen")};
  auto retention = open("retention");
  config.retention = {retention.duration("history"), retention.duration("ticks"), retention.duration("dead_letters"),
                      retention.duration("audit")};
  if (config.retention.ticks <= config.worker.max_tick_age) {
    retention.fault("ticks", "must be longer than worker.max_tick_age, or a replayed tick would not be recognised");
  }
}

/// Calls `read` for each entry of a mapping of named sections.
template <typename Read>
void for_each_named(SectionReader& top, const char* key, Faults& faults, Read read) {
  if (!top.has(key)) return;
  const auto node = top.node(key);
  if (!node.IsMap()) return top.fault(key, "sections by name (name: …) are needed");
  std::set<std::string> seen;
  for (const auto& entry : node) {
    const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
    const std::string path = std::string(key) + "." + printable(name, 60);
    if (!is_name(name)) {
      faults.add(entry.first.Mark(), path, "not a name; use a-z 0-9 . _ -, at most 100 characters, beginning with a letter or digit");
    } else if (!seen.insert(name).second) {
      faults.add(entry.first.Mark(), path, "given twice");
    }
    read(name, entry.second, path, entry.first.Mark());
  }
}

}  // namespace

ConfigError::ConfigError(std::vector<std::string> faults)
    : std::runtime_error([&] {
        std::string text;
        for (const auto& fault : faults) text += (text.empty() ? "" : "\n") + fault;
        return text;
      }()),
      faults_(std::move(faults)) {}

std::vector<std::string> Config::queues() const {
  std::set<std::string> names{"default"};
  names.insert(worker.queues.begin(), worker.queues.end());
  for (const auto& job : jobs) names.insert(job.queue);
  return {names.begin(), names.end()};
}

Config parse_config(const std::string& text, const std::string& name) {
  if (text.size() > kMaxConfigBytes) throw ConfigError({name + ": larger than 4 MiB"});
  std::size_t line = 0;
  for (const auto part : split(text, '\n')) {
    ++line;
    if (!is_utf8(part)) throw ConfigError({name + ":" + std::to_string(line) + ": is not UTF-8; save the file in that encoding"});
  }
  Faults faults(name);
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw ConfigError({name + ":" + not_yaml(text, error)});
  }
  Config config;
  SectionReader top("", root, "", YAML::Mark(), faults);
  read_services(top, config, faults);
  for_each_named(top, "databases", faults, [&](const std::string& key, const YAML::Node& node, const std::string& path, YAML::Mark mark) {
    SectionReader section("databases.<name>", node, path, mark, faults);
    config.databases[key] = {section.text("url_env"), section.text("role"), section.boolean("superuser"),
                             static_cast<int>(section.integer("pool")), section.duration("statement_timeout")};
  });
  config.has_jobs_section = top.has("jobs");
  for_each_named(top, "jobs", faults, [&](const std::string& key, const YAML::Node& node, const std::string& path, YAML::Mark mark) {
    config.jobs.push_back(read_job(key, {"jobs.<name>", node, path, mark, faults}, config, faults));
  });
  if (config.queues().size() > amqp::kMaxTickQueues) {
    top.fault("jobs", "name more than " + std::to_string(amqp::kMaxTickQueues) + " queues; let jobs share them");
  }
  if (auto lines = faults.sorted(); !lines.empty()) throw ConfigError(std::move(lines));
  return config;
}

Config load_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  try {
    if (file) text.assign(std::istreambuf_iterator<char>(file), {});
  } catch (const std::ios_base::failure&) {  // a folder opens as a file does
    file.setstate(std::ios_base::badbit);
  }
  if (!file) throw ConfigError({path + ": cannot be read; give its place with --config"});
  return parse_config(text, path);
}

}  // namespace takt
