#include "core/tick/signing.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <numeric>

#include "core/text/text.h"
#include "core/tick/hkdf.h"

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
  EXPECT_EQ(ring.ticks().sign(kId, kTime, kBody), kSignature);
  EXPECT_TRUE(ring.ticks().verify(kId, std::to_string(kTime), kBody, kSignature, kNow));
}

TEST(Signing, RefusesAnyChangedByteOfIdTimeBodyOrSignature) {
  const auto ring = KeyRing::parse(kSecret, "test");
  const std::string time = std::to_string(kTime);
  for (std::size_t i = 0; i < std::string(kBody).size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string body = kBody;
      body[i] = static_cast<char>(body[i] ^ (1 << bit));
      EXPECT_FALSE(ring.ticks().verify(kId, time, body, kSignature, kNow));
    }
  }
  EXPECT_FALSE(ring.ticks().verify("msg_other", time, kBody, kSignature, kNow));
  EXPECT_FALSE(ring.ticks().verify(kId, "1614265331", kBody, kSignature, kNow));
  for (std::size_t i = 3; i < std::string(kSignature).size() - 1; ++i) {
    std::string signature = kSignature;
    signature[i] = signature[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ring.ticks().verify(kId, time, kBody, signature, kNow)) << i;
  }
  for (const char* signature :
       {"", "v1,", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}) {
    EXPECT_FALSE(ring.ticks().verify(kId, time, kBody, signature, kNow)) << signature;
  }
}

TEST(Signing, FindsTheRightOneAmongSeveralSignatures) {
  const auto ring = KeyRing::parse(kSecret, "test");
  EXPECT_TRUE(ring.ticks().verify(kId, std::to_string(kTime), kBody,
                                  "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= " + std::string(kSignature), kNow));
}

TEST(KeyRing, AcceptsCurrentNextAndARetiredKeyUntilItsEnd) {
  const std::string current = generate_signing_secret().reveal(), next = generate_signing_secret().reveal(),
                    old = generate_signing_secret().reveal();
  const auto ring =
      KeyRing::parse("next " + next + "\nretired " + old + " until 2026-11-21T12:00:00Z # leaving\ncurrent " + current, "test");
  const auto signed_by = [](const std::string& secret) { return KeyRing::parse(secret, "x").ticks().sign("id", 1, "body"); };
  EXPECT_EQ(ring.ticks().sign("id", 1, "body"), signed_by(current));
  EXPECT_TRUE(ring.ticks().verify("id", "1", "body", signed_by(current), kNow));
  EXPECT_TRUE(ring.ticks().verify("id", "1", "body", signed_by(next), kNow));
  EXPECT_TRUE(ring.ticks().verify("id", "1", "body", signed_by(old), kNow));
  EXPECT_FALSE(ring.ticks().verify("id", "1", "body", signed_by(old), *parse_rfc3339("2026-11-21T12:00:00Z")));
  EXPECT_FALSE(ring.ticks().verify("id", "1", "body", signed_by(generate_signing_secret().reveal()), kNow));
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

std::string octets(int first, int count) {
  std::string bytes(static_cast<std::size_t>(count), '\0');
  std::iota(bytes.begin(), bytes.end(), static_cast<char>(first));
  return bytes;
}

// RFC 5869, appendix A.1 to A.3.
TEST(Hkdf, MatchesTheVectorsOfRfc5869) {
  const auto derived = [](const std::string& key, const std::string& salt, const std::string& info, std::size_t size) {
    return to_hex(hkdf_sha256(Secret(key), salt, info, size).reveal());
  };
  EXPECT_EQ(derived(std::string(22, '\x0b'), octets(0x00, 13), octets(0xf0, 10), 42),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
  EXPECT_EQ(derived(octets(0x00, 80), octets(0x60, 80), octets(0xb0, 80), 82),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9"
            "aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87");
  EXPECT_EQ(derived(std::string(22, '\x0b'), "", "", 42),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
}

// The vector of docs/signing.md, made with another implementation.
TEST(KeyRing, DerivesTheDocumentedKeysOfLettersAndWebhooks) {
  const auto ring = KeyRing::parse(kSecret, "test");
  EXPECT_EQ(ring.letters().sign(kId, kTime, kBody), "v1,z6eXLCd3JAuJtI7IgMgvRlpMtTZv/bwE51M2KrG2gZM=");
  EXPECT_EQ(ring.webhook_secret("billing.renewals", KeyRole::current, kNow)->reveal(),
            "whsec_ZdiltjCT3NiV+4Ky5hYuJb76PlGX57Q9HJo15Zth4SA=");
  EXPECT_EQ(ring.webhooks("billing.renewals")->sign(kId, kTime, kBody), "v1,lKTc8797VSr2hDPPPww2Ns8FW7QdMryDqEzS0EWEXjo=");
}

TEST(KeyRing, Finding6_WhatIsSignedForOnePurposeProvesNothingForAnother) {
  const auto ring = KeyRing::parse(kSecret, "test");
  const auto mine = ring.webhooks("mine"), other = ring.webhooks("other");
  const std::vector<const SigningKeys*> purposes{&ring.ticks(), &ring.letters(), mine.get(), other.get()};
  for (const auto* signer : purposes) {
    const auto signature = signer->sign(kId, kTime, kBody);
    for (const auto* verifier : purposes) {
      EXPECT_EQ(verifier->verify(kId, std::to_string(kTime), kBody, signature, kNow), verifier == signer);
    }
  }
  EXPECT_EQ(ring.webhooks("mine"), mine) << "derived once";
}

/// A ring in the middle of a rotation, and what a receiver verifies with that was given the secret of one role.
struct Rotation {
  KeyRing ring = KeyRing::parse("current " + generate_signing_secret().reveal() + "\nnext " + generate_signing_secret().reveal() +
                                    "\nretired " + generate_signing_secret().reveal() + " until 2026-11-21T12:00:00Z\nretired " +
                                    generate_signing_secret().reveal() + " until 2026-11-20T00:00:00Z",
                                "test");
  bool takes(KeyRole role, Timestamp at) const {
    const auto receiver = KeyRing::parse(ring.webhook_secret("job", role, kNow)->reveal(), "receiver");
    return receiver.ticks().verify(kId, "1", kBody, ring.webhooks("job")->sign_also_retired(kId, 1, kBody, at), at);
  }
};

TEST(KeyRing, Finding6_AReceiverWithTheOldSecretGoesOnUntilTheRetiredKeysEnd) {
  const Rotation rotation;
  const auto end = *parse_rfc3339("2026-11-21T12:00:00Z");
  EXPECT_TRUE(rotation.takes(KeyRole::current, kNow));
  EXPECT_TRUE(rotation.takes(KeyRole::retired, kNow));
  EXPECT_FALSE(rotation.takes(KeyRole::retired, end));
  EXPECT_FALSE(rotation.takes(KeyRole::next, kNow)) << "not before it is promoted";
  EXPECT_EQ(split(rotation.ring.webhooks("job")->sign_also_retired(kId, 1, kBody, kNow), ' ').size(), 2U);
  EXPECT_EQ(rotation.ring.webhooks("job")->sign(kId, 1, kBody), rotation.ring.webhooks("job")->sign_also_retired(kId, 1, kBody, end));
  EXPECT_FALSE(rotation.ring.webhook_secret("job", KeyRole::retired, end));
  EXPECT_FALSE(KeyRing::parse(kSecret, "test").webhook_secret("job", KeyRole::next, kNow));
}

TEST(KeyRing, Finding6_LettersAreAcceptedUnderCurrentNextAndARetiredKeyUntilItsEnd) {
  const std::string current = generate_signing_secret().reveal(), next = generate_signing_secret().reveal(),
                    old = generate_signing_secret().reveal();
  const auto ring = KeyRing::parse("current " + current + ", next " + next + ", retired " + old + " until 2026-11-21T12:00:00Z", "test");
  const auto accepted = [&](const std::string& secret, Timestamp at) {
    return ring.letters().verify(kId, "1", kBody, KeyRing::parse(secret, "other process").letters().sign(kId, 1, kBody), at);
  };
  EXPECT_TRUE(accepted(current, kNow));
  EXPECT_TRUE(accepted(next, kNow));
  EXPECT_TRUE(accepted(old, kNow));
  EXPECT_FALSE(accepted(old, *parse_rfc3339("2026-11-21T12:00:00Z")));
}

TEST(KeyRing, RemembersABoundedNumberOfJobsAndForgetsNoneThatIsInUse) {
  const auto ring = KeyRing::parse(kSecret, "test");
  const auto held = ring.webhooks("job-0");
  const auto signature = held->sign(kId, kTime, kBody);
  for (int i = 1; i < 5000; ++i) EXPECT_NE(ring.webhooks("job-" + std::to_string(i))->sign(kId, kTime, kBody), signature);
  EXPECT_EQ(held->sign(kId, kTime, kBody), signature);
  EXPECT_EQ(ring.webhooks("job-0")->sign(kId, kTime, kBody), signature);
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
