#include "core/http/admission.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace takt {
namespace {

TEST(Admission, SpreadsAHostOverTheLanesAndPrefersTheCallersOwn) {
  Admission admission(5, 100, 2);
  EXPECT_EQ(admission.enter(1, "a"), 0);
  EXPECT_EQ(admission.enter(2, "a"), 1);
  EXPECT_EQ(admission.enter(3, "a", 1), 1) << "its own lane has a place";
  EXPECT_EQ(admission.enter(4, "a", 1), 0) << "its own lane is full: of five places it has two";
  EXPECT_EQ(admission.enter(5, "a"), 0);
  EXPECT_EQ(admission.enter(6, "a"), std::nullopt);
  EXPECT_EQ(admission.enter(7, "b"), 0) << "another host has places of its own";
}

TEST(Admission, GivesAPlaceToTheNextOfTheHostInTheLaneWhereItBecameFree) {
  Admission admission(2, 100, 2);
  admission.enter(1, "a");
  admission.enter(2, "a");
  EXPECT_EQ(admission.enter(3, "a"), std::nullopt);
  EXPECT_EQ(admission.enter(4, "a"), std::nullopt);
  EXPECT_EQ(admission.leave("a", 1), 3U);
  EXPECT_EQ(admission.leave("a", 0), 4U);
  EXPECT_EQ(admission.leave("a", 0), std::nullopt);
  EXPECT_EQ(admission.enter(5, "a"), 0) << "lane 1 is still busy";
}

TEST(Admission, HasOnePlaceAHostWhereOnlyOneIsAllowedWhateverTheLanes) {
  Admission admission(1, 100, 4);
  EXPECT_EQ(admission.enter(1, "a"), 0);
  EXPECT_EQ(admission.enter(2, "a"), std::nullopt);
  EXPECT_EQ(admission.enter(3, "a", 2), std::nullopt);
}

TEST(Admission, PutsAHostsNextBehindOthersThatWaitForAPlaceAmongAll) {
  Admission admission(1, 2, 1);
  admission.enter(1, "a");
  admission.enter(2, "b");
  EXPECT_EQ(admission.enter(3, "a"), std::nullopt);
  EXPECT_EQ(admission.enter(4, "c"), std::nullopt);
  EXPECT_EQ(admission.leave("a", 0), 4U);
  EXPECT_EQ(admission.leave("b", 0), 3U);
}

TEST(Admission, ForgetsWhatIsGivenUpAndBringsTheNextOfItsHostForward) {
  Admission admission(1, 1, 1);
  admission.enter(1, "a");
  EXPECT_EQ(admission.enter(2, "b"), std::nullopt);
  EXPECT_EQ(admission.enter(3, "a"), std::nullopt);
  EXPECT_FALSE(admission.withdraw(1, "a")) << "it does not wait";
  EXPECT_TRUE(admission.withdraw(2, "b"));
  EXPECT_FALSE(admission.withdraw(2, "b"));
  EXPECT_FALSE(admission.withdraw(9, "unknown"));
  EXPECT_EQ(admission.leave("a", 0), 3U);
}

/// Whatever comes, ends and is given up in whatever order: no bound is ever exceeded, in total or in a lane, and nobody who
/// could begin is left waiting.
TEST(Admission, KeepsItsBoundsAndLeavesNobodyBehind) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    const auto upto = [&](int most) { return std::uniform_int_distribution<int>(1, most)(random); };
    const int per_host = upto(4), in_all = upto(6), lanes = upto(3), hosts = upto(4);
    Admission admission(per_host, in_all, lanes);
    std::map<std::uint64_t, std::string> waiting;
    std::vector<std::pair<std::string, int>> active;
    const auto check = [&] {
      std::map<std::string, int> of_host;
      std::map<int, int> of_lane;
      for (const auto& [host, lane] : active) ++of_host[host], ++of_lane[lane];
      ASSERT_LE(active.size(), static_cast<std::size_t>(in_all)) << "seed " << seed;
      for (const auto& [host, count] : of_host) ASSERT_LE(count, per_host) << "seed " << seed;
      for (const auto& [lane, count] : of_lane) ASSERT_LE(count, admission.places(lane)) << "seed " << seed;
      if (lanes == 1 && active.size() < static_cast<std::size_t>(in_all)) {
        for (const auto& [id, host] : waiting) ASSERT_EQ(of_host[host], per_host) << "seed " << seed << ": " << id << " could begin";
      }
    };
    const auto end_one = [&](std::size_t which) {
      const auto [host, lane] = active[which];
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(which));
      if (const auto next = admission.leave(host, lane)) {
        ASSERT_TRUE(waiting.contains(*next)) << "seed " << seed;
        active.emplace_back(waiting[*next], lane);
        waiting.erase(*next);
      }
    };
    for (std::uint64_t id = 1; id <= 200; ++id) {
      const std::string host = std::to_string(upto(hosts));
      if (const auto lane = admission.enter(id, host, upto(lanes + 1) - 2))
        active.emplace_back(host, *lane);
      else
        waiting[id] = host;
      if (!active.empty() && upto(3) == 1) end_one(static_cast<std::size_t>(upto(static_cast<int>(active.size()))) - 1);
      if (!waiting.empty() && upto(8) == 1) {
        ASSERT_TRUE(admission.withdraw(waiting.begin()->first, waiting.begin()->second));
        waiting.erase(waiting.begin());
      }
      check();
    }
    while (!active.empty()) {
      end_one(0);
      check();
    }
    ASSERT_TRUE(waiting.empty()) << "seed " << seed << ": " << waiting.size() << " were left waiting";
  }
}

}  // namespace
}  // namespace takt
