#include "core/installation/troubles.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace takt {
namespace {

ServiceRow service(const std::string& id, const std::string& role, const std::string& key = "aaaaaaaa") {
  ServiceRow row;
  row.identity.id = id;
  row.identity.kind = role;
  row.identity.roles = {role};
  row.identity.host = "web-1";
  row.identity.pid = 7;
  row.identity.keys = {"current " + key};
  if (role == "worker") row.queues = {"default"};
  row.age_s = 60;
  return row;
}

struct Troubles : testing::Test {
  Installation installation;

  Troubles() {
    installation.led = true;
    installation.services = {service("d", "dispatcher"), service("w", "worker"), service("a", "archive")};
    installation.services[0].leading = true;
    installation.queues = {{"default", {"mail", "report"}, 2}};
  }
  [[nodiscard]] std::vector<std::string> kinds() const {
    std::vector<std::string> kinds;
    for (const auto& one : troubles_of(installation)) kinds.push_back(one.what);
    return kinds;
  }
  [[nodiscard]] std::string text() const {
    std::string text;
    for (const auto& one : troubles_of(installation)) text += one.text + "\n";
    return text;
  }
};

using Kinds = std::vector<std::string>;

TEST_F(Troubles, AWholeInstallationHasNone) { EXPECT_EQ(kinds(), Kinds{}); }

TEST_F(Troubles, NobodyIsThere) {
  installation.led = false;
  installation.services.clear();
  installation.waiting["takt.dead"] = 3;
  EXPECT_EQ(kinds(), (Kinds{"no_leader", "no_worker", "no_archive"}));
  EXPECT_NE(text().find("no dispatcher lives"), std::string::npos);
  EXPECT_NE(text().find("queue default: nothing is done for mail, report"), std::string::npos);
  EXPECT_NE(text().find("3 wait in takt.dead"), std::string::npos);
}

TEST_F(Troubles, AQueueOfManyJobsNamesAFew) {
  installation.queues.push_back({"slow", {"a", "b", "c"}, 40});
  EXPECT_NE(text().find("NO WORKER takes the ticks of queue slow: nothing is done for a, b, c and 37 more"), std::string::npos) << text();
}

TEST_F(Troubles, WhoWentSilentDoesNothingAnyMore) {
  installation.services[1].unseen_s = 9;
  EXPECT_EQ(kinds(), (Kinds{"no_worker", "silent"}));
  EXPECT_NE(text().find("WENT SILENT: worker w on web-1 (pid 7), last seen 9 s ago"), std::string::npos) << text();
}

TEST_F(Troubles, OneThatWasStartedAnewIsToldForAWhileOnly) {
  installation.services.push_back(service("gone", "worker"));
  installation.services.back().unseen_s = 299;
  installation.services.back().age_s = 1000;
  installation.services[1].age_s = 200;  // since then, on the same host
  EXPECT_EQ(kinds(), (Kinds{"silent"})) << "what ends and is started again and again is to be seen";
  installation.services.back().unseen_s = 301;
  EXPECT_EQ(kinds(), Kinds{});
  installation.services[1].age_s = 400;
  EXPECT_EQ(kinds(), (Kinds{"silent"})) << "that one was there before";
  installation.services[1].age_s = 200;
  installation.services.back().identity.host = "web-2";
  EXPECT_EQ(kinds(), (Kinds{"silent"})) << "that one is elsewhere";
  installation.services.back().identity.host = "web-1";
  installation.services.back().identity.kind = "up";
  EXPECT_EQ(kinds(), (Kinds{"silent"})) << "that one does less";
  installation.services.back().identity.kind = "worker";
  EXPECT_EQ(kinds(), Kinds{});
  installation.services.push_back(service("gone2", "worker"));
  installation.services.back().unseen_s = 400;
  installation.services.back().age_s = 900;
  EXPECT_EQ(troubles_of(installation).size(), 1U) << "one is in the place of one";
  installation.services.back().age_s = 301;
  installation.services.back().unseen_s = 305;
  installation.services[3].unseen_s = 900;
  EXPECT_EQ(kinds(), Kinds{}) << "the second came in the first one's place, and the living one in the second's";
}

TEST_F(Troubles, ManyOfAKindAreThreeLinesAndACount) {
  for (int i = 0; i < 40; ++i) {
    installation.services.push_back(service("gone" + std::to_string(i), "worker"));
    installation.services.back().unseen_s = 60;
  }
  const auto troubles = troubles_of(installation);
  EXPECT_EQ(troubles.size(), 4U);
  EXPECT_EQ(troubles.back().text, "WENT SILENT: 37 services more; \"takt services\" lists them");
  EXPECT_EQ(installation_gauges(installation, troubles).troubles["silent"], 40);
}

TEST_F(Troubles, AWorkerWithoutTheLeadersKeyAndOneThatIsNotReady) {
  installation.services.push_back(service("x", "worker", "bbbbbbbb"));
  installation.services.back().ready = false;
  installation.services.back().detail = "no key";
  EXPECT_EQ(kinds(), (Kinds{"key", "not_ready"}));
  installation.services.back().identity.keys = {"current bbbbbbbb", "next aaaaaaaa"};
  EXPECT_EQ(kinds(), (Kinds{"not_ready"})) << "it holds the key, in another role";
  installation.services.back().age_s = 1;
  EXPECT_EQ(kinds(), Kinds{}) << "it has only just begun";
}

TEST_F(Troubles, AJobsTroublesAreToldOnceTheNearestCauseFirst) {
  for (auto& one : installation.services) one.failing = {{"mail", 5, "401", std::nullopt}, {"report", 3, "500", std::nullopt}};
  installation.services[1].failing[0].attempts = 9;
  installation.services[1].failing[0].error = "403";
  installation.held = {{"report", "the endpoint answered 500", from_unix_us(0), from_unix_us(0), false, 12}};
  EXPECT_EQ(kinds(), (Kinds{"held", "failing"}));
  EXPECT_NE(text().find("FAILING: job mail: the last 19 attempts failed at workers d@web-1, w@web-1, a@web-1: 403"), std::string::npos)
      << text();
  installation.blocked = {{"mail", "this endpoint does not accept POST", 1}};
  EXPECT_EQ(kinds(), (Kinds{"held", "blocked"}));
  EXPECT_NE(text().find("1 item waits for you"), std::string::npos);
}

TEST_F(Troubles, WhatIsHeldBeyondItsTimeWaitsForAnItem) {
  installation.held = {{"report", "the endpoint answered 500", from_unix_us(0), from_unix_us(0), true, 12}};
  installation.held_count = 300;
  EXPECT_NE(text().find("HELD: job report, its next item tries it: 12 failures in a row"), std::string::npos) << text();
  EXPECT_NE(text().find("HELD: 299 jobs more; \"takt jobs\" lists them"), std::string::npos) << text();
  EXPECT_EQ(installation_gauges(installation, troubles_of(installation)).troubles["held"], 300);
}

TEST_F(Troubles, AnArchiveWithoutTheLeadersKeyIsToldToo) {
  installation.services[2].identity.keys = {"current bbbbbbbb"};
  EXPECT_EQ(kinds(), Kinds{"key"});
}

TEST_F(Troubles, APauseIsMeant) {
  installation.paused = {{"mail", "ann", from_unix_us(0)}};
  ASSERT_EQ(kinds(), Kinds{"paused"});
  EXPECT_TRUE(troubles_of(installation)[0].meant);
  EXPECT_NE(text().find("PAUSED: job mail by ann since 1970-01-01T00:00:00Z"), std::string::npos) << text();
}

TEST_F(Troubles, EachKindIsAMetricAlsoWhereItIsNought) {
  const auto gauges = installation_gauges(installation, troubles_of(installation));
  EXPECT_EQ(gauges.troubles.size(), 10U);
  EXPECT_TRUE(std::all_of(gauges.troubles.begin(), gauges.troubles.end(), [](const auto& one) { return one.second == 0; }));
  EXPECT_EQ(gauges.workers.at("default"), 1);
}

}  // namespace
}  // namespace takt
