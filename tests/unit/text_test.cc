#include "core/text/text.h"

#include <gtest/gtest.h>

#include "core/text/secret.h"

namespace takt {
namespace {

TEST(Base64, RoundTripsEveryLength) {
  for (std::size_t length = 0; length < 70; ++length) {
    std::string bytes;
    for (std::size_t i = 0; i < length; ++i) bytes += static_cast<char>(i * 37 + length);
    EXPECT_EQ(base64_decode(base64_encode(bytes)), bytes) << length;
  }
}

TEST(Base64, RefusesWhatIsNotCanonical) {
  for (const char* text : {"a", "ab", "abc", "a===", "=abc", "ab=c", "ab-_", "ab c", "abcd\n", "abcd===="})
    EXPECT_FALSE(base64_decode(text)) << text;
}

TEST(Printable, CutsAtACharacterAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(printable("plain", 10), "plain");
  EXPECT_EQ(printable("zürich", 2), "z…");
  EXPECT_EQ(printable("a\xff\xfe b\nc\x01", 20), "a?? b c?");
  EXPECT_EQ(printable("\xed\xa0\x80", 20), "???") << "a surrogate is not UTF-8";
}

TEST(Nearest, FindsATypingErrorAndNothingFarther) {
  EXPECT_EQ(nearest("batchsize", {"batch_size", "backoff"}), "batch_size");
  EXPECT_EQ(nearest("xyz", {"batch_size", "backoff"}), "");
}

TEST(Secret, MovesWithoutLeavingBytesBehind) {
  Secret first("short");
  const Secret second(std::move(first));
  EXPECT_EQ(second.reveal(), "short");
  EXPECT_TRUE(first.empty());  // NOLINT(bugprone-use-after-move): that is the point
}

}  // namespace
}  // namespace takt
