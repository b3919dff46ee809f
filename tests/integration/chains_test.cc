// Runs of small batches that end together. The ticks' rows are locked meanwhile, so that what is under way stays so.
#include <gtest/gtest.h>

#include <future>
#include <set>

#include "tests/support/fixture.h"
#include "tests/support/runs.h"
#include "worker/chains.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr int kBatch = 10;

struct ChainsTest : testing::Test {
  TestDatabase database;
  CatalogJob job;
  std::unique_ptr<DatabaseConnection> lock = database->dedicated();
  std::vector<std::future<Claim>> claims;

  ChainsTest() {
    database.apply(plain_job("demo"));
    job = database.job("demo");
    database->exec(std::string("SELECT takt.enqueue('demo') FROM generate_series(1, 200)"));
  }

  /// Begins runs, each of its own chain, and locks their ticks.
  std::vector<RunRecord> begin(int count, int batch = kBatch) {
    std::vector<RunRecord> runs;
    for (int run = 1; run <= count; ++run) {
      const auto tick = continuation_id(run);
      runs.push_back(ended(tick, run, job, claim_batch(*database, {job, tick, SystemClock().now(), "more", run, "test-worker", batch})));
    }
    lock->session().script("BEGIN");
    lock->session().script("SELECT FROM takt.ticks FOR UPDATE");
    return runs;
  }
  void go_on(Chains& chains, const RunRecord& run, int batch = kBatch) {
    claims.push_back(std::async(std::launch::async, [this, &chains, &run, batch] {
      const ClaimRequest next{job, run.tick_id, SystemClock().now(), "more", 100 + run.run_id, "test-worker", batch, false, true};
      Claim claim;
      EXPECT_TRUE(chains.settle_and_claim(run, next, claim).recorded);
      return claim;
    }));
  }
  std::int64_t under_way() {
    return database.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()");
  }
  bool under_way_becomes(int statements) {
    return eventually([&] { return under_way() == statements; });
  }
  /// Ids of what all claims together hold, once those that are under way may end.
  std::set<std::int64_t> ids() {
    lock->session().script("COMMIT");
    std::set<std::int64_t> found;
    for (auto& claim : claims) {
      for (const auto& item : claim.get().items) EXPECT_TRUE(found.insert(item.id).second) << item.id;
    }
    return found;
  }
};

TEST_F(ChainsTest, ShareAStatementWithThoseThatWaitAndKeepTheirOwnRows) {
  Chains chains(*database, {60s, 100});
  const auto runs = begin(4);
  go_on(chains, runs[0]);
  ASSERT_TRUE(under_way_becomes(1)) << "the first goes at once";
  go_on(chains, runs[1]);
  ASSERT_TRUE(under_way_becomes(2)) << "as many wait as are under way";
  go_on(chains, runs[2]);
  EXPECT_EQ(claims[2].wait_for(100ms), std::future_status::timeout);
  EXPECT_EQ(under_way(), 2) << "it waits for company";
  go_on(chains, runs[3]);
  ASSERT_TRUE(under_way_becomes(3)) << "two share the third statement";
  EXPECT_EQ(ids().size(), 40U);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'completed' AND done = 10"), 4);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.runs WHERE status = 'running' AND cardinality(item_ids) = 10"), 4);
  EXPECT_EQ(database.number("SELECT count(DISTINCT finished_at) FROM takt.runs WHERE status = 'completed'"), 3);
}

TEST_F(ChainsTest, WaitNoLongerThanTheirPatience) {
  Chains chains(*database, {1ms, 100});
  const auto runs = begin(3);
  for (std::size_t i = 0; i < 3; ++i) {
    go_on(chains, runs[i]);
    EXPECT_TRUE(under_way_becomes(static_cast<int>(i) + 1));
  }
  EXPECT_EQ(ids().size(), 30U);
}

TEST_F(ChainsTest, OfLargeBatchesGoAlone) {
  Chains chains(*database, {60s, 20});
  const auto runs = begin(3, 20);
  for (const auto& run : runs) go_on(chains, run, 20);
  EXPECT_TRUE(under_way_becomes(3));
  EXPECT_EQ(ids().size(), 60U);
}

TEST_F(ChainsTest, AreAllToldWhatTheirStatementThrew) {
  Chains chains(*database, {60s, 100});
  const auto runs = begin(4);
  for (std::size_t i = 0; i < 2; ++i) {
    go_on(chains, runs[i]);
    ASSERT_TRUE(under_way_becomes(static_cast<int>(i) + 1));
  }
  go_on(chains, runs[2]);
  go_on(chains, runs[3]);
  ASSERT_TRUE(under_way_becomes(3));
  database->exec(
      std::string("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND "
                  "datname = current_database() ORDER BY query_start DESC LIMIT 1"));
  EXPECT_THROW(claims[2].get(), DatabaseUnavailable);
  EXPECT_THROW(claims[3].get(), DatabaseUnavailable);
  claims.resize(2);
  go_on(chains, runs[2]);
  go_on(chains, runs[3]);
  EXPECT_EQ(ids().size(), 40U) << "and may try again";
}

}  // namespace
}  // namespace takt
