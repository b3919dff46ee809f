#include "core/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/config/fields.h"

namespace takt {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::SizeIs;

std::vector<std::string> faults(const std::string& text) {
  try {
    parse_config(text, "takt.yaml");
    return {};
  } catch (const ConfigError& error) {
    return error.faults();
  }
}

constexpr auto kMinimal = R"(
jobs:
  demo:
    handler: {http: {url: "https://example.com/x", method: POST}}
)";

TEST(Config, GivesDefaultsToWhatIsNotSaid) {
  const auto config = parse_config(kMinimal, "takt.yaml");
  ASSERT_THAT(config.jobs, SizeIs(1));
  const auto& job = config.jobs[0];
  EXPECT_EQ(job.batch_size, 100);
  EXPECT_EQ(job.max_attempts, 5);
  EXPECT_EQ(job.lease, std::chrono::seconds(30));
  EXPECT_FALSE(job.item_per_tick) << "no schedules: nothing brings items of its own";
  EXPECT_EQ(config.retention.dead_letters, std::chrono::hours(720));
  EXPECT_EQ(config.retention.audit, std::chrono::days(365));
  EXPECT_EQ(config.queues(), std::vector<std::string>{"default"});
}

TEST(Config, RefusesWhatIsNoUnicodeAndWhatAliasesMakeHuge) {
  EXPECT_THAT(faults("jobs:\n  a: \"\xff\"\n"), Contains(HasSubstr("takt.yaml:2: is not UTF-8")));
  const std::string job = R"(
jobs:
  a:
    handler: {http: {url: "http://x/", method: GET}}
    schedules: [{name: s, cron: "@daily", payload: )";
  std::string bomb = job + "[&a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]";
  for (int i = 1; i < 9; ++i) {
    bomb += ", &a" + std::to_string(i) + " [";
    for (int n = 0; n < 10; ++n) bomb += (n == 0 ? "*a" : ", *a") + std::to_string(i - 1);
    bomb += "]";
  }
  EXPECT_THAT(faults(bomb + "]}]\n"), Contains(HasSubstr("more than 10000 values")));
}

TEST(Config, AListAndAFormulaAreNoBackoffTogether) {
  EXPECT_THAT(faults("jobs:\n  a:\n    handler: {http: {url: \"http://x/\", method: GET}}\n    backoff: {list: [1s, 5s], base: 3s}\n"),
              Contains(HasSubstr("has no effect beside list")));
}

TEST(Config, ReadsEveryFormOfBackoffAndSchedule) {
  const auto config = parse_config(R"(
jobs:
  a:
    handler: {http: {url: "http://x/", method: GET}}
    backoff: [1m, 5m]
    schedules:
      - {name: daily, cron: "0 14 * * *", time_zone: America/Mexico_City, payload: {n: 1, s: "1", t: true, l: [1.5, ~]}}
      - {name: once, run_at: "2026-12-24T18:00:00Z", misfire: all, misfire_limit: 3}
  b:
    handler: {http: {url: "http://x/", method: GET}}
    backoff: {base: 2s, factor: 3, max: 1m, jitter: none}
  c:
    handler: {http: {url: "http://x/", method: GET}}
    backoff: {list: [1m, 5m], jitter: full}
  d:
    handler: {http: {url: "http://x/", method: GET}}
    backoff: {base: 2s}
  e:
    handler: {http: {url: "http://x/", method: GET}}
)",
                                   "takt.yaml");
  EXPECT_EQ(config.jobs[0].backoff.list, (std::vector<Duration>{std::chrono::minutes(1), std::chrono::minutes(5)}));
  EXPECT_EQ(nlohmann::json::parse(config.jobs[0].schedules[0].payload).dump(), R"({"l":[1.5,null],"n":1,"s":"1","t":true})");
  EXPECT_EQ(config.jobs[0].schedules[1].cron, "@at 2026-12-24T18:00:00Z");
  EXPECT_TRUE(config.jobs[0].item_per_tick);
  EXPECT_FALSE(config.jobs[0].backoff.full_jitter) << "a list is what is written";
  EXPECT_FALSE(config.jobs[1].backoff.full_jitter);
  EXPECT_TRUE(config.jobs[2].backoff.full_jitter) << "a list with jitter, since that is asked for";
  EXPECT_TRUE(config.jobs[3].backoff.full_jitter) << "a formula, unless it says none";
  EXPECT_TRUE(config.jobs[4].backoff.full_jitter) << "and the default, which is a formula";
}

TEST(Config, ReportsEveryFaultInOneGoWithLineAndWayOut) {
  const auto found = faults(R"(database: {pool: many}
surprise: 1
jobs:
  demo:
    handler: {http: {url: "ftp://example.com", method: FETCH, headers: {"Host": x, "X-A": "a\r\nb"}}}
    batchsize: 10
    batch_size: 0
    backoff: {factor: 0.5}
    max_age: soon
    schedules:
      - {name: a, cron: "61 * * * *"}
      - {name: a, cron: "* * * * *", time_zone: Mars/Olympus, misfire: maybe}
      - {cron: "* * * * *", run_at: "2026-12-24T18:00:00Z"}
  Bad Name:
    handler: {}
  twice: {handler: {sql: {database: nowhere, statement: "SELECT 1"}}}
  empty:
)");
  const std::vector<std::string> expected{
      "takt.yaml:1: database.pool: \"many\" is not a whole number; give a whole number from 1 to 100",
      "takt.yaml:2: surprise: unknown field",
      "takt.yaml:5: jobs.demo.handler.http.url: the URL has the scheme ftp",
      "takt.yaml:5: jobs.demo.handler.http.method: \"FETCH\" is none of GET, HEAD, POST, PUT, PATCH, DELETE",
      "takt.yaml:5: jobs.demo.handler.http.headers: Host is set by Takt",
      "takt.yaml:5: jobs.demo.handler.http.headers.X-A: a header's value is one line",
      "takt.yaml:6: jobs.demo.batchsize: unknown field; did you mean batch_size?",
      "takt.yaml:7: jobs.demo.batch_size: 0 is out of range; give a whole number from 1 to 10000",
      "takt.yaml:8: jobs.demo.backoff.factor: 0.5 is below 1; give a number from 1 to 10",
      "takt.yaml:9: jobs.demo.max_age: \"soon\" is not a duration",
      "takt.yaml:11: jobs.demo.schedules[0].cron: \"61 * * * *\", character 1: the minute must be from 0 to 59",
      "takt.yaml:12: jobs.demo.schedules[1].name: \"a\" is used twice",
      "takt.yaml:12: jobs.demo.schedules[1].time_zone: \"Mars/Olympus\" is not a time zone",
      "takt.yaml:12: jobs.demo.schedules[1].misfire: \"maybe\" is none of skip, once, all",
      "takt.yaml:13: jobs.demo.schedules[2].name: missing",
      "takt.yaml:13: jobs.demo.schedules[2].cron: give either cron or run_at",
      "jobs.Bad Name: not a name",
      "jobs.Bad Name.handler: exactly one of http, sql, native is needed",
      "takt.yaml:16: jobs.twice.handler.sql.database: \"nowhere\" is not declared",
      "jobs.empty.handler: missing"};
  for (const auto& line : expected) EXPECT_THAT(found, Contains(HasSubstr(line)));
  EXPECT_THAT(found, SizeIs(expected.size()));
}

TEST(Config, Finding36_SaysWhichParameterAStatementDoesNotHave) {
  const auto found = faults(R"(databases: {app: {url_env: APP, role: app_jobs}}
jobs:
  a: {handler: {sql: {database: app, statement: "SELECT $1, $10"}}}
  b: {handler: {sql: {database: app, statement: "SELECT '$5'"}}}
)");
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0], HasSubstr("takt.yaml:3: jobs.a.handler.sql.statement: $10 is not one of its parameters; there are $1 payload"));
}

TEST(Config, HidesUserInformationOfAUrl) {
  const auto found = faults(R"(jobs: {a: {handler: {http: {url: "https://me:hunter2@example.com", method: GET}}}})");
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0], HasSubstr("user information"));
  EXPECT_THAT(found[0], testing::Not(HasSubstr("hunter2")));
}

TEST(Config, RefusesWhatIsNotYamlOrNotAMapping) {
  EXPECT_THAT(faults("jobs: [unclosed"), SizeIs(1));
  EXPECT_THAT(faults("- a\n- b\n"), SizeIs(1));
  EXPECT_THAT(faults("jobs: 5"), SizeIs(1));
  EXPECT_THAT(faults("a: {b: 1"), SizeIs(1));
  EXPECT_TRUE(faults("").empty());
}

TEST(Config, KeepsTheReplayGuardLongerThanATickMayBeOld) {
  EXPECT_THAT(faults("retention: {ticks: 1d}\nworker: {max_tick_age: 24h}\n"), Contains(HasSubstr("retention.ticks")));
}

TEST(JobDefinition, SurvivesItsJson) {
  const auto config = parse_config(kMinimal, "takt.yaml");
  const auto json = job_to_json(config.jobs[0]);
  EXPECT_EQ(job_to_json(job_from_json("demo", json)), json);
}

TEST(ConfigurationReference, NamesEveryField) {
  const auto text = configuration_reference();
  for (const auto& section : configuration_sections()) {
    for (const auto& field : section.fields) EXPECT_NE(text.find("| `" + std::string(field.key) + "` |"), std::string::npos) << field.key;
  }
}

TEST(Config, Finding33_JobsUseAtMostAHundredQueues) {
  std::string jobs = "jobs:\n";
  const auto add = [&](int n) {
    jobs += "  j" + std::to_string(n) + ": {queue: q" + std::to_string(n) + ", handler: {native: {name: noop}}}\n";
  };
  for (int n = 1; n < 100; ++n) add(n);
  EXPECT_EQ(parse_config(jobs, "takt.yaml").queues().size(), 100U) << "and default";
  add(100);
  try {
    parse_config(jobs, "takt.yaml");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("jobs: name more than 100 queues; let jobs share them"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace takt
