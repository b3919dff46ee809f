#include "core/tick/signing_keys.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <array>
#include <stdexcept>

#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMacBytes = 32;
constexpr std::size_t kMaxSignatures = 8;

std::string signature_of(const HmacKey& key, std::string_view id, std::string_view timestamp, std::string_view body) {
  return "v1," + base64_encode(key.mac({id, ".", timestamp, ".", body}));
}

}  // namespace

HmacKey::HmacKey(const Secret& key) {
  EVP_MAC* algorithm = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  context_ = EVP_MAC_CTX_new(algorithm);
  EVP_MAC_free(algorithm);
  std::array<char, 7> digest{"SHA256"};
  const std::array<OSSL_PARAM, 2> parameters{OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest.data(), 0),
                                             OSSL_PARAM_construct_end()};
  const auto& bytes = key.reveal();
  if (context_ == nullptr ||
      EVP_MAC_init(context_, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), parameters.data()) != 1) {
    EVP_MAC_CTX_free(context_);
    throw std::runtime_error("OpenSSL offers no HMAC-SHA256");
  }
}

HmacKey::~HmacKey() { EVP_MAC_CTX_free(context_); }

std::string HmacKey::mac(std::initializer_list<std::string_view> parts) const {
  std::string result(kMacBytes, '\0');
  std::size_t length = 0;
  const std::scoped_lock lock(mutex_);
  bool ok = EVP_MAC_init(context_, nullptr, 0, nullptr) == 1;  // same key, fresh message
  for (const auto part : parts) {
    ok = ok && EVP_MAC_update(context_, reinterpret_cast<const unsigned char*>(part.data()), part.size()) == 1;
  }
  ok = ok && EVP_MAC_final(context_, reinterpret_cast<unsigned char*>(result.data()), &length, result.size()) == 1;
  if (!ok || length != kMacBytes) throw std::runtime_error("HMAC-SHA256 failed");
  return result;
}

std::string_view to_string(KeyRole role) {
  switch (role) {
    case KeyRole::current: return "current";
    case KeyRole::next: return "next";
    case KeyRole::retired: return "retired";
  }
  return "?";
}

std::string SigningKeys::sign(std::string_view id, std::int64_t timestamp_s, std::string_view body) const {
  return signature_of(*keys_.front().hmac, id, std::to_string(timestamp_s), body);
}

std::string SigningKeys::sign_also_retired(std::string_view id, std::int64_t timestamp_s, std::string_view body, Timestamp now) const {
  const auto timestamp = std::to_string(timestamp_s);
  auto signatures = signature_of(*keys_.front().hmac, id, timestamp, body);
  for (const auto& key : keys_) {
    if (key.until && *key.until > now) signatures += " " + signature_of(*key.hmac, id, timestamp, body);
  }
  return signatures;
}

bool SigningKeys::verify(std::string_view id, std::string_view timestamp, std::string_view body, std::string_view signatures,
                         Timestamp now) const {
  std::vector<std::string> given;
  for (const auto part : split(signatures, ' ')) {
    if (!part.starts_with("v1,") || given.size() == kMaxSignatures) continue;
    if (auto bytes = base64_decode(part.substr(3)); bytes && bytes->size() == kMacBytes) given.push_back(std::move(*bytes));
  }
  if (given.empty()) return false;
  unsigned matches = 0;
  for (const auto& key : keys_) {
    if (key.until && *key.until <= now) continue;
    const auto expected = key.hmac->mac({id, ".", timestamp, ".", body});
    for (const auto& signature : given) {
      matches += CRYPTO_memcmp(expected.data(), signature.data(), kMacBytes) == 0 ? 1U : 0U;
    }
  }
  return matches > 0;
}

}  // namespace takt
