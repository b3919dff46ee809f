#include "worker/handlers/native_handler.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace takt {
namespace {

using namespace std::chrono_literals;

struct NativeHandlerTest : testing::Test {
  Metrics metrics;
  RunControl control;
  JobDefinition job;
  std::vector<ClaimedItem> items{{1, 1, "a", "{}", 0ms, 0ms}, {2, 3, "", "{\"n\": 2}", 0ms, 0ms}, {3, 1, "", "{}", 0ms, 0ms}};
  std::vector<HandlerResult> results{3};

  void run(NativeHandler& handler, const std::string& name) {
    job.name = "demo";
    job.handler = NativeHandlerConfig{name};
    handler.run({job, 7, "trace", std::chrono::steady_clock::now() + 1h, control}, items, results);
  }
};

TEST_F(NativeHandlerTest, GivesEachItemToItsFunction) {
  std::vector<std::string> seen;
  NativeHandler handler({{"see",
                          [&](const NativeItem& item) {
                            seen.push_back(std::string(item.job) + " " + std::to_string(item.id) + " " + std::to_string(item.run_id) + " " +
                                           std::to_string(item.attempt) + " " + std::string(item.key) + " " + std::string(item.payload));
                            HandlerResult result;
                            result.item_class = item.id == 2 ? ItemClass::noop : ItemClass::done;
                            return result;
                          }}},
                        metrics);
  run(handler, "see");
  EXPECT_EQ(seen, (std::vector<std::string>{"demo 1 7 1 a {}", "demo 2 7 3  {\"n\": 2}", "demo 3 7 1  {}"}));
  EXPECT_EQ(results[1].item_class, ItemClass::noop);
}

TEST_F(NativeHandlerTest, TurnsAnExceptionIntoAnErrorOfThatItemAlone) {
  NativeHandler handler({{"throw",
                          [](const NativeItem& item) -> HandlerResult {
                            if (item.id == 2) throw std::runtime_error("no such invoice");
                            HandlerResult result;
                            result.item_class = ItemClass::done;
                            return result;
                          }}},
                        metrics);
  run(handler, "throw");
  EXPECT_EQ(results[0].item_class, ItemClass::done);
  EXPECT_EQ(results[1].item_class, ItemClass::error);
  EXPECT_EQ(results[1].error, "no such invoice");
  EXPECT_EQ(results[2].item_class, ItemClass::done);
}

TEST_F(NativeHandlerTest, BlocksItemsOfAFunctionItDoesNotHave) {
  NativeHandler handler({}, metrics);
  run(handler, "absent");
  EXPECT_EQ(results[0].item_class, ItemClass::blocked);
  EXPECT_EQ(results[0].reason, "native_unknown");
  run(handler, "noop");
  EXPECT_EQ(results[0].item_class, ItemClass::done) << "noop is always there";
}

TEST_F(NativeHandlerTest, BeginsNothingAfterAStop) {
  NativeHandler handler({}, metrics);
  control.stop();
  run(handler, "noop");
  EXPECT_EQ(results[0].item_class, ItemClass::handed_back);
}

}  // namespace
}  // namespace takt
