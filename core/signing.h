#pragma once
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/secret.h"
#include "core/time.h"

typedef struct evp_mac_ctx_st EVP_MAC_CTX;  // NOLINT(modernize-use-using): OpenSSL's own declaration

namespace takt {

/// HMAC-SHA256 under one key, with the keyed context kept (three times the speed of a one-shot call). Thread-safe.
class HmacKey {
 public:
  explicit HmacKey(const Secret& key);
  ~HmacKey();
  HmacKey(const HmacKey&) = delete;
  HmacKey& operator=(const HmacKey&) = delete;

  /// 32 bytes over the concatenation of `parts`.
  [[nodiscard]] std::string mac(std::initializer_list<std::string_view> parts) const;

 private:
  mutable std::mutex mutex_;
  EVP_MAC_CTX* context_;  // guarded by mutex_
};

enum class KeyRole { current, next, retired };
std::string_view to_string(KeyRole role);

/// Several signing keys valid at once: sign with `current`, accept current, next, and a retired key until its end.
/// Immutable after construction; safe to share between threads.
class KeyRing {
 public:
  struct Key {
    KeyRole role;
    std::optional<Timestamp> until;  // retired keys only
    std::string fingerprint;         // first 8 hex digits of SHA-256 of the key: for people, tells nothing of it
    std::unique_ptr<HmacKey> hmac;
  };

  /// Text form: keys separated by newlines or commas, each "[current|next|retired] whsec_<base64> [until <RFC 3339>]";
  /// a bare key is `current`; '#' starts a comment. Exactly one current; secrets of 24 to 64 bytes.
  /// Throws std::invalid_argument that names the line and the fault, never the secret.
  static KeyRing parse(std::string_view text, const std::string& where);

  /// TAKT_SIGNING_KEYS, or the file named by TAKT_SIGNING_KEYS_FILE, which must not be accessible by group or others.
  /// Throws std::invalid_argument with what to do.
  static KeyRing from_environment();
  static KeyRing from_file(const std::string& path);

  [[nodiscard]] const std::vector<Key>& keys() const { return keys_; }

  /// "v1,<base64>" over `id.timestamp.body` with the current key (Standard Webhooks).
  [[nodiscard]] std::string sign(std::string_view id, std::int64_t timestamp_s, std::string_view body) const;

  /// True if any signature in the space-separated `signatures` was made with a key that is valid at `now`. Every key
  /// is tried against every v1 signature, each comparison in constant time. At most 8 signatures are looked at.
  [[nodiscard]] bool verify(std::string_view id, std::string_view timestamp, std::string_view body, std::string_view signatures,
                            Timestamp now) const;

 private:
  std::vector<Key> keys_;
};

/// A fresh "whsec_…" with 32 random bytes.
Secret generate_signing_secret();

/// The bytes of a "whsec_<base64>" of 24 to 64 bytes, else the reason in words.
struct SecretFault {
  std::string message;
};
std::optional<Secret> decode_signing_secret(std::string_view text, SecretFault& fault);

}  // namespace takt
