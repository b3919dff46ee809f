#include "core/observe/log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace takt {
namespace {

TEST(Log, WritesTextThatCannotBeForged) {
  EXPECT_EQ(format_log_text("item settled", {{"item", 7}, {"error", "a \"b\"\nc=d"}, {"empty", ""}}),
            "item settled item=7 error=\"a \\\"b\\\" c=d\" empty=\"\"");
}

TEST(Log, WritesJsonThatParses) {
  const auto line =
      format_log_json("t", "info", "worker", "run finished", {{"run", 12}, {"ok", true}, {"ms", 1.5}, {"text", "\"\\\n\xff"}});
  const auto parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed["run"], 12);
  EXPECT_EQ(parsed["ok"], true);
  EXPECT_EQ(parsed["ms"], 1.5);
  EXPECT_EQ(parsed["event"], "run finished");
}

}  // namespace
}  // namespace takt
