#include "core/signing.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "core/text.h"

namespace takt {
namespace {

// The vector of the Standard Webhooks specification (its reference libraries' tests).
constexpr auto kSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
constexpr auto kId = "msg_p5jXN8AQM9LWM0D4loKWxJek";
constexpr std::int64_t kTime = 1614265330;
constexpr auto kBody = R"({"test": 2432232314})";
constexpr auto kSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const Timestamp kNow = *parse_rfc3339("2026-11-21T10:00:00Z");

TEST(Signing, MatchesTheStandardWebhooksVector) {
  const auto ring = KeyRing::parse(kSecret, "test");
  EXPECT_EQ(ring.sign(kId, kTime, kBody), kSignature);
  EXPECT_TRUE(ring.verify(kId, std::to_string(kTime), kBody, kSignature, kNow));
}

TEST(Signing, RefusesAnyChangedByteOfIdTimeBodyOrSignature) {
  const auto ring = KeyRing::parse(kSecret, "test");
  const std::string time = std::to_string(kTime);
  for (std::size_t i = 0; i < std::string(kBody).size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string body = kBody;
      body[i] = static_cast<char>(body[i] ^ (1 << bit));
      EXPECT_FALSE(ring.verify(kId, time, body, kSignature, kNow));
    }
  }
  EXPECT_FALSE(ring.verify("msg_other", time, kBody, kSignature, kNow));
  EXPECT_FALSE(ring.verify(kId, "1614265331", kBody, kSignature, kNow));
  for (std::size_t i = 3; i < std::string(kSignature).size() - 1; ++i) {
    std::string signature = kSignature;
    signature[i] = signature[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ring.verify(kId, time, kBody, signature, kNow)) << i;
  }
  for (const char* signature :
       {"", "v1,", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}) {
    EXPECT_FALSE(ring.verify(kId, time, kBody, signature, kNow)) << signature;
  }
}

TEST(Signing, FindsTheRightOneAmongSeveralSignatures) {
  const auto ring = KeyRing::parse(kSecret, "test");
  EXPECT_TRUE(
      ring.verify(kId, std::to_string(kTime), kBody, "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= " + std::string(kSignature), kNow));
}

TEST(KeyRing, AcceptsCurrentNextAndARetiredKeyUntilItsEnd) {
  const std::string current = generate_signing_secret().reveal(), next = generate_signing_secret().reveal(),
                    old = generate_signing_secret().reveal();
  const auto ring =
      KeyRing::parse("next " + next + "\nretired " + old + " until 2026-11-21T12:00:00Z # leaving\ncurrent " + current, "test");
  const auto signed_by = [](const std::string& secret) { return KeyRing::parse(secret, "x").sign("id", 1, "body"); };
  EXPECT_EQ(ring.sign("id", 1, "body"), signed_by(current));
  EXPECT_TRUE(ring.verify("id", "1", "body", signed_by(current), kNow));
  EXPECT_TRUE(ring.verify("id", "1", "body", signed_by(next), kNow));
  EXPECT_TRUE(ring.verify("id", "1", "body", signed_by(old), kNow));
  EXPECT_FALSE(ring.verify("id", "1", "body", signed_by(old), *parse_rfc3339("2026-11-21T12:00:00Z")));
  EXPECT_FALSE(ring.verify("id", "1", "body", signed_by(generate_signing_secret().reveal()), kNow));
}

std::string fault_of(const std::string& text) {
  try {
    KeyRing::parse(text, "keys");
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

TEST(KeyRing, SaysWhatIsWrongAndNeverTheSecret) {
  const std::string short_key = "whsec_" + base64_encode(std::string(23, 'x')), long_key = "whsec_" + base64_encode(std::string(65, 'x'));
  EXPECT_NE(fault_of("").find("0 current keys"), std::string::npos);
  EXPECT_NE(fault_of(std::string(kSecret) + "," + kSecret).find("2 current keys"), std::string::npos);
  EXPECT_NE(fault_of(short_key).find("23 bytes"), std::string::npos);
  EXPECT_NE(fault_of(long_key).find("65 bytes"), std::string::npos);
  EXPECT_NE(fault_of("hunter2hunter2").find("keys:1"), std::string::npos);
  EXPECT_NE(fault_of("whsec_!!!").find("base64"), std::string::npos);
  EXPECT_NE(fault_of(std::string(kSecret) + "\nretired " + kSecret).find("keys:2"), std::string::npos);
  for (const auto& text : {short_key, long_key, std::string("hunter2hunter2"), std::string(kSecret) + "\nretired " + kSecret}) {
    EXPECT_EQ(fault_of(text).find("hunter2"), std::string::npos);
    EXPECT_EQ(fault_of(text).find("MfKQ9r8G"), std::string::npos);
  }
}

TEST(KeyFile, IsRefusedWhenOthersMayReadIt) {
  const std::string path = testing::TempDir() + "takt-keys-" + std::to_string(::getpid());
  std::ofstream(path) << kSecret << "\n";
  ::chmod(path.c_str(), 0644);
  EXPECT_THROW(KeyRing::from_file(path), std::invalid_argument);
  ::chmod(path.c_str(), 0600);
  EXPECT_EQ(KeyRing::from_file(path).keys().size(), 1U);
  ::unlink(path.c_str());
  EXPECT_THROW(KeyRing::from_file(path), std::invalid_argument);
}

}  // namespace
}  // namespace takt
