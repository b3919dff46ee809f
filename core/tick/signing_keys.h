#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/secret.h"
#include "core/time/time.h"

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

/// The keys of one purpose. Signs with the current one; accepts current, next, and a retired one until its end.
/// Signatures are those of Standard Webhooks. Does not change after it was made; thread-safe.
class SigningKeys {
 public:
  struct Key {
    KeyRole role;
    std::optional<Timestamp> until;  // retired keys only
    std::unique_ptr<HmacKey> hmac;
  };

  /// The first of `keys` is the current one.
  explicit SigningKeys(std::vector<Key> keys) : keys_(std::move(keys)) {}

  /// "v1,<base64>" over `id.timestamp.body` with the current key.
  [[nodiscard]] std::string sign(std::string_view id, std::int64_t timestamp_s, std::string_view body) const;

  /// The same, and behind it, each after a space, the signatures of retired keys that have not ended by `now`: for receivers who
  /// hold one key at a time and change it when it suits them.
  [[nodiscard]] std::string sign_also_retired(std::string_view id, std::int64_t timestamp_s, std::string_view body, Timestamp now) const;

  /// True if any signature in the space-separated `signatures` was made with a key that is valid at `now`. Every key
  /// is tried against every v1 signature, each comparison in constant time. At most 8 signatures are looked at.
  [[nodiscard]] bool verify(std::string_view id, std::string_view timestamp, std::string_view body, std::string_view signatures,
                            Timestamp now) const;

 private:
  std::vector<Key> keys_;
};

}  // namespace takt
