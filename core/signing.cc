#include "core/signing.h"

#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "core/random.h"
#include "core/text.h"

namespace takt {

namespace {

constexpr std::string_view kPrefix = "whsec_";
constexpr std::size_t kMinSecretBytes = 24;
constexpr std::size_t kMaxSecretBytes = 64;
constexpr std::size_t kMacBytes = 32;
constexpr std::size_t kMaxSignatures = 8;
constexpr std::size_t kMaxKeyFileBytes = 64 * 1024;

std::string fingerprint_of(const std::string& key) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_Digest(key.data(), key.size(), digest.data(), &length, EVP_sha256(), nullptr);
  return to_hex({reinterpret_cast<const char*>(digest.data()), 4});
}

KeyRing::Key parse_key(std::string_view entry, const std::string& where) {
  std::vector<std::string_view> words;
  for (const auto word : split(entry, ' ')) {
    if (!word.empty()) words.push_back(word);
  }
  KeyRing::Key key{KeyRole::current, std::nullopt, {}, nullptr};
  std::size_t i = 0;
  if (!words[0].starts_with(kPrefix)) {
    if (words[0] == "next") {
      key.role = KeyRole::next;
    } else if (words[0] == "retired") {
      key.role = KeyRole::retired;
    } else if (words[0] != "current") {
      throw std::invalid_argument(where + ": a key begins with current, next, retired or whsec_");
    }
    ++i;
  }
  SecretFault fault;
  const auto secret = i < words.size() ? decode_signing_secret(words[i++], fault) : std::nullopt;
  if (!secret) throw std::invalid_argument(where + ": " + (fault.message.empty() ? "the key is missing" : fault.message));
  if (i < words.size()) {
    const auto until = words[i] == "until" && i + 2 == words.size() ? parse_rfc3339(words[i + 1]) : std::nullopt;
    if (!until || key.role != KeyRole::retired) {
      throw std::invalid_argument(where + ": after the key only \"until <time>\" may follow, and only for a retired key");
    }
    key.until = until;
  }
  if (key.role == KeyRole::retired && !key.until) {
    throw std::invalid_argument(where + ": a retired key states its end: retired whsec_… until 2026-12-01T00:00:00Z");
  }
  key.fingerprint = fingerprint_of(secret->reveal());
  key.hmac = std::make_unique<HmacKey>(*secret);
  return key;
}

}  // namespace

std::optional<Secret> decode_signing_secret(std::string_view text, SecretFault& fault) {
  if (!text.starts_with(kPrefix)) {
    fault.message = "a signing key begins with whsec_; make one with \"takt keys generate\"";
    return std::nullopt;
  }
  text.remove_prefix(kPrefix.size());
  std::string padded(text);  // unpadded base64 is common among key generators
  while (padded.size() % 4 != 0) padded += '=';
  auto bytes = base64_decode(padded);
  wipe(padded);
  if (!bytes) {
    fault.message = "what follows whsec_ is not base64";
    return std::nullopt;
  }
  if (bytes->size() < kMinSecretBytes || bytes->size() > kMaxSecretBytes) {
    fault.message = "the key has " + std::to_string(bytes->size()) + " bytes; 24 to 64 are allowed";
    wipe(*bytes);
    return std::nullopt;
  }
  return std::make_optional<Secret>(std::move(*bytes));
}

Secret generate_signing_secret() {
  std::string bytes = random_bytes(32);
  Secret secret(std::string(kPrefix) + base64_encode(bytes));
  wipe(bytes);
  return secret;
}

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

KeyRing KeyRing::parse(std::string_view text, const std::string& where) {
  KeyRing ring;
  int line = 0;
  for (const auto raw : split(text, '\n')) {
    ++line;
    for (const auto part : split(raw.substr(0, raw.find('#')), ',')) {
      const auto entry = trim(part);
      if (!entry.empty()) ring.keys_.push_back(parse_key(entry, where + ":" + std::to_string(line)));
    }
  }
  const auto current = std::count_if(ring.keys_.begin(), ring.keys_.end(), [](const Key& k) { return k.role == KeyRole::current; });
  if (current != 1) {
    throw std::invalid_argument(where + ": " + std::to_string(current) + " current keys; exactly one is needed");
  }
  std::stable_sort(ring.keys_.begin(), ring.keys_.end(), [](const Key& a, const Key& b) { return a.role < b.role; });
  return ring;
}

KeyRing KeyRing::from_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::invalid_argument("key file " + path + ": " + std::strerror(errno));
  struct stat info {};
  std::string text;
  std::string fault;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    fault = "not a regular file";
  } else if ((info.st_mode & 077U) != 0) {
    fault = "others may access it; run: chmod 600 " + path;
  } else if (info.st_size > static_cast<off_t>(kMaxKeyFileBytes)) {
    fault = "larger than 64 KiB";
  } else {
    text.resize(static_cast<std::size_t>(info.st_size));
    const ssize_t got = ::read(fd, text.data(), text.size());
    text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  }
  ::close(fd);
  if (!fault.empty()) throw std::invalid_argument("key file " + path + ": " + fault);
  const Secret guard(text);
  wipe(text);
  return parse(guard.reveal(), path);
}

KeyRing KeyRing::from_environment() {
  const char* keys = std::getenv("TAKT_SIGNING_KEYS");
  if (keys != nullptr && *keys != '\0') return parse(keys, "TAKT_SIGNING_KEYS");
  const char* file = std::getenv("TAKT_SIGNING_KEYS_FILE");
  if (file != nullptr && *file != '\0') return from_file(file);
  throw std::invalid_argument(
      "no signing key: set TAKT_SIGNING_KEYS, or TAKT_SIGNING_KEYS_FILE to a file with mode 0600; "
      "\"takt keys generate\" makes one");
}

std::string KeyRing::sign(std::string_view id, std::int64_t timestamp_s, std::string_view body) const {
  return "v1," + base64_encode(keys_.front().hmac->mac({id, ".", std::to_string(timestamp_s), ".", body}));
}

bool KeyRing::verify(std::string_view id, std::string_view timestamp, std::string_view body, std::string_view signatures,
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
