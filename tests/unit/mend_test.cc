#include "dlq/mend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace takt {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

const LetterToMend kItem{"item-7-0", "item", "demo", "archived", "", "{}", "{}"};
const LetterToMend kTick{"tick-t1", "tick", "demo", "archived", "", "{}", "{}"};

std::string mended(const LetterToMend& letter, const std::string& text) {
  const auto result = mended_payload(letter, text);
  const auto* payload = std::get_if<std::string>(&result);
  return payload != nullptr ? *payload : "fault: " + std::get<MendFault>(result).text;
}

TEST(Mend, Finding40_KeepsNumbersAsTheyWereWritten) {
  EXPECT_EQ(mended(kItem, "{\n  \"account\": 1234567890123456789,\n  \"rate\": 1.10\n}\n"),
            R"({"account":1234567890123456789,"rate":1.10})");
  EXPECT_EQ(mended(kItem, " null "), "null");
}

TEST(Mend, Finding40_SaysWhereATextIsNotJson) {
  EXPECT_THAT(mended(kItem, "{\n  \"a\": 1,\n  oops\n}"), StartsWith("fault: the payload is not JSON: line 3, column 3"));
  EXPECT_THAT(mended(kItem, "{\"a\": \"\xff\"}"), StartsWith("fault: the payload is not JSON: line 1, column 8"));
  EXPECT_THAT(mended(kItem, "{} {}"), HasSubstr("not JSON"));
  EXPECT_EQ(mended(kItem, " \n"), "fault: the text is empty");
}

TEST(Mend, Finding40_RefusesWhatNoEnqueueTakes) {
  for (const std::string& text : {std::string(R"("\u0000")"), std::string("1e1001"), std::string(101, '[') + std::string(101, ']'),
                                  "\"" + std::string(524'287, 'x') + "\""}) {
    EXPECT_THAT(mended(kItem, text), StartsWith("fault: the payload is not taken: it has more than 524288 bytes")) << text.substr(0, 20);
  }
  const std::string largest = "\"" + std::string(524'286, 'x') + "\"";
  EXPECT_EQ(mended(kItem, largest), largest);
}

TEST(Mend, Finding40_ATickStaysThatTick) {
  EXPECT_EQ(mended(kTick, R"({"id": "t1", "job": "demo", "items": [{"payload": {"n": 0.30000000000000000001}, "key": "k"}]})"),
            R"({"id":"t1","job":"demo","items":[{"payload":{"n":0.30000000000000000001},"key":"k"}]})");
  EXPECT_EQ(mended(kTick, R"({"id": "t2", "job": "demo"})"), "fault: a tick's id cannot be changed");
  EXPECT_EQ(mended(kTick, R"({"id": "t1", "job": "other"})"), "fault: a tick's job cannot be changed: it is demo");
  EXPECT_THAT(mended(kTick, R"({"id": "t1", "job": "demo", "itmes": []})"), StartsWith("fault: it is no takt.v1.JobTick"));
  EXPECT_THAT(mended(kTick, R"({"id": "t1", "job": "demo", "items": [{"priority": 101}]})"), StartsWith("fault: the tick is not taken"));
  EXPECT_THAT(mended(kTick, R"({"id": "t1", "job": "demo", "items": [{"payload": "\u0000"}]})"), HasSubstr("U+0000"));
  EXPECT_THAT(mended(kTick, "{"), StartsWith("fault: the tick is not JSON: line 1"));
}

}  // namespace
}  // namespace takt
