#include "worker/failing_jobs.h"

#include <gtest/gtest.h>

#include "tests/support/clock.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct FailingJobsTest : testing::Test {
  FakeClock clock;
  FailingJobs jobs{clock};

  /// A run of `name` whose items ended so, in order.
  void run(const std::string& name, const std::vector<ItemClass>& classes, const std::string& error = "the endpoint answered 500") {
    CatalogJob job;
    job.definition.name = name;
    RunRecord record;
    record.job = &job;
    for (const auto item_class : classes) {
      record.results.emplace_back();
      record.results.back().item_class = item_class;
      record.results.back().error = error;
    }
    jobs.note(record);
  }
  /// A run of `name` whose items all failed, and were settled so.
  void fail(const std::string& name, std::vector<Settlement> settlements) {
    CatalogJob job;
    job.definition.name = name;
    RunRecord record;
    record.job = &job;
    record.results.resize(settlements.size());
    for (auto& result : record.results) result.item_class = ItemClass::error;
    record.settlements = std::move(settlements);
    jobs.note(record);
  }
};

TEST_F(FailingJobsTest, AreThoseOfWhichThreeInARowFailed) {
  run("mail", {ItemClass::error});
  run("mail", {ItemClass::error});
  EXPECT_TRUE(jobs.list().empty());
  run("mail", {ItemClass::error}, "the endpoint answered 401");
  ASSERT_EQ(jobs.list().size(), 1U);
  EXPECT_EQ(jobs.list()[0].job, "mail");
  EXPECT_EQ(jobs.list()[0].attempts, 3);
  EXPECT_EQ(jobs.list()[0].error, "the endpoint answered 401") << "the last one's";
}

TEST_F(FailingJobsTest, FewAreToldAfterAMomentWithoutASuccess) {
  run("mail", {ItemClass::error});
  clock.advance(FailingJobs::kFewAfter - 1ms);
  EXPECT_TRUE(jobs.list().empty());
  clock.advance(1ms);
  ASSERT_EQ(jobs.list().size(), 1U);
  EXPECT_EQ(jobs.list()[0].attempts, 1);
  EXPECT_EQ(jobs.list()[0].few_since_s, 1.0);
  run("mail", {ItemClass::error, ItemClass::error});
  EXPECT_EQ(jobs.list()[0].few_since_s, std::nullopt) << "three prove enough";
  run("mail", {ItemClass::done, ItemClass::error});
  EXPECT_TRUE(jobs.list().empty()) << "a new row of failures";
}

TEST_F(FailingJobsTest, OneSuccessEndsTheRowAndWhatWasNotTriedSaysNothing) {
  run("mail", {ItemClass::error, ItemClass::blocked, ItemClass::fatal});
  run("mail", {ItemClass::handed_back, ItemClass::skipped, ItemClass::expired, ItemClass::interrupted});
  EXPECT_EQ(jobs.list().size(), 1U);
  run("mail", {ItemClass::noop});
  EXPECT_TRUE(jobs.list().empty());
  run("mail", {ItemClass::done, ItemClass::error, ItemClass::error, ItemClass::error});
  EXPECT_EQ(jobs.list().size(), 1U);
  run("mail", {ItemClass::error, ItemClass::done});
  EXPECT_TRUE(jobs.list().empty());
}

TEST_F(FailingJobsTest, AreForgottenWhereNothingIsTriedHereAnyMore) {
  run("mail", {ItemClass::error, ItemClass::error, ItemClass::error});
  clock.advance(FailingJobs::kForgotten - 1ms);
  EXPECT_EQ(jobs.list().size(), 1U);
  clock.advance(1ms);
  EXPECT_TRUE(jobs.list().empty());
}

TEST_F(FailingJobsTest, AreRememberedUntilAfterTheRetryThatWasPutOff) {
  fail("mail", std::vector<Settlement>(3, {ItemState::pending, 15min, true, ""}));
  clock.advance(15min);
  EXPECT_EQ(jobs.list().size(), 1U);
  clock.advance(FailingJobs::kForgotten);
  EXPECT_TRUE(jobs.list().empty());
}

TEST_F(FailingJobsTest, AreThoseOfWhichAnItemDiedHoweverFewFailed) {
  fail("rare", {{ItemState::pending, 1s, true, ""}});
  EXPECT_TRUE(jobs.list().empty());
  fail("rare", {{ItemState::dead, 1s, true, ""}});
  ASSERT_EQ(jobs.list().size(), 1U);
  EXPECT_EQ(jobs.list()[0].attempts, 2);
  run("rare", {ItemClass::done});
  EXPECT_TRUE(jobs.list().empty());
}

TEST_F(FailingJobsTest, TheWorstComesFirstAndMemoryIsBounded) {
  for (std::size_t i = 0; i < FailingJobs::kMost + 10; ++i)
    run("job" + std::to_string(i), {ItemClass::error, ItemClass::error, ItemClass::error}, std::string(5000, 'e'));
  run("job7", {ItemClass::error});
  const auto list = jobs.list();
  EXPECT_EQ(list.size(), FailingJobs::kMost);
  EXPECT_EQ(list[0].job, "job7");
  EXPECT_LE(list[0].error.size(), FailingJobs::kErrorBytes + 8);
}

}  // namespace
}  // namespace takt
