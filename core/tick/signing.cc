#include "core/tick/signing.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "core/process/random.h"
#include "core/text/text.h"
#include "core/tick/hkdf.h"

namespace takt {

namespace {

constexpr std::string_view kPrefix = "whsec_";
constexpr std::size_t kMinSecretBytes = 24;
constexpr std::size_t kMaxSecretBytes = 64;
constexpr std::size_t kDerivedBytes = 32;
/// Far beyond what an installation has. The keys of a job need 1.2 kB for each root key.
constexpr std::size_t kMaxRememberedJobs = 4096;
constexpr std::size_t kMaxKeyFileBytes = 64 * 1024;

std::string fingerprint_of(const std::string& key) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_Digest(key.data(), key.size(), digest.data(), &length, EVP_sha256(), nullptr);
  return to_hex({reinterpret_cast<const char*>(digest.data()), 4});
}

/// What keys are derived for. Part of the contract with receivers: docs/signing.md. Ticks are signed with the roots themselves.
constexpr const char* kTickPurpose = "";
constexpr const char* kLetterPurpose = "takt/letter";
std::string webhook_purpose(const std::string& job) { return "takt/webhook/" + job; }

Secret derive(const Secret& root, const std::string& purpose) {
  return purpose == kTickPurpose ? root.clone() : hkdf_sha256(root, "", purpose, kDerivedBytes);
}

Secret encode_signing_secret(const Secret& bytes) {
  std::string digits = base64_encode(bytes.reveal());
  std::string text;
  text.reserve(kPrefix.size() + digits.size());
  text.append(kPrefix).append(digits);
  wipe(digits);
  return Secret(std::move(text));
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

Secret generate_signing_secret() { return encode_signing_secret(Secret(random_bytes(32))); }

KeyRing::Root KeyRing::parse_root(std::string_view entry, const std::string& where) {
  std::vector<std::string_view> words;
  for (const auto word : split(entry, ' ')) {
    if (!word.empty()) words.push_back(word);
  }
  Key key{KeyRole::current, std::nullopt, {}};
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
  auto secret = i < words.size() ? decode_signing_secret(words[i++], fault) : std::nullopt;
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
  return {std::move(key), std::move(*secret)};
}

KeyRing KeyRing::parse(std::string_view text, const std::string& where) {
  std::vector<Root> roots;
  int line = 0;
  for (const auto raw : split(text, '\n')) {
    ++line;
    for (const auto part : split(raw.substr(0, raw.find('#')), ',')) {
      const auto entry = trim(part);
      if (!entry.empty()) roots.push_back(parse_root(entry, where + ":" + std::to_string(line)));
    }
  }
  const auto current = std::count_if(roots.begin(), roots.end(), [](const Root& root) { return root.shown.role == KeyRole::current; });
  if (current != 1) {
    throw std::invalid_argument(where + ": " + std::to_string(current) + " current keys; exactly one is needed");
  }
  std::stable_sort(roots.begin(), roots.end(), [](const Root& a, const Root& b) { return a.shown.role < b.shown.role; });
  return KeyRing(std::move(roots));
}

KeyRing::KeyRing(std::vector<Root> roots)
    : roots_(std::move(roots)),
      ticks_(keys_for(roots_, kTickPurpose)),
      letters_(keys_for(roots_, kLetterPurpose)),
      webhooks_(new Webhooks) {}

SigningKeys KeyRing::keys_for(const std::vector<Root>& roots, const std::string& purpose) {
  std::vector<SigningKeys::Key> keys;
  keys.reserve(roots.size());
  for (const auto& root : roots) {
    keys.push_back({root.shown.role, root.shown.until, std::make_unique<HmacKey>(derive(root.secret, purpose))});
  }
  return SigningKeys(std::move(keys));
}

std::vector<KeyRing::Key> KeyRing::keys() const {
  std::vector<Key> keys;
  for (const auto& root : roots_) keys.push_back(root.shown);
  return keys;
}

std::shared_ptr<const SigningKeys> KeyRing::webhooks(const std::string& job) const {
  const std::scoped_lock lock(webhooks_->mutex);
  auto& of_job = webhooks_->of_job;
  if (const auto known = of_job.find(job); known != of_job.end()) return known->second;
  if (of_job.size() == kMaxRememberedJobs) of_job.clear();
  return of_job[job] = std::make_shared<const SigningKeys>(keys_for(roots_, webhook_purpose(job)));
}

std::optional<Secret> KeyRing::webhook_secret(const std::string& job, KeyRole role, Timestamp now) const {
  const Root* chosen = nullptr;
  for (const auto& root : roots_) {
    if (root.shown.role != role || !root.shown.valid_at(now)) continue;
    if (chosen == nullptr || root.shown.until > chosen->shown.until) chosen = &root;
  }
  if (chosen == nullptr) return std::nullopt;
  return encode_signing_secret(derive(chosen->secret, webhook_purpose(job)));
}

Secret read_key_file(const std::string& path) {
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
  Secret read(text);
  wipe(text);
  return read;
}

KeyRing KeyRing::from_file(const std::string& path) { return parse(read_key_file(path).reveal(), path); }

KeyRing KeyRing::from_environment() {
  const char* keys = std::getenv("TAKT_SIGNING_KEYS");
  if (keys != nullptr && *keys != '\0') return parse(keys, "TAKT_SIGNING_KEYS");
  const char* file = std::getenv("TAKT_SIGNING_KEYS_FILE");
  if (file != nullptr && *file != '\0') return from_file(file);
  throw std::invalid_argument(
      "no signing key: set TAKT_SIGNING_KEYS, or TAKT_SIGNING_KEYS_FILE to a file with mode 0600; "
      "\"takt keys generate\" makes one");
}

}  // namespace takt
