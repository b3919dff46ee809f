#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/secret.h"
#include "core/tick/signing_keys.h"
#include "core/time/time.h"

namespace takt {

/// The installation's root keys, and from them the keys of each purpose. Ticks are signed with the roots themselves, so that
/// external tickers hold the key they were given; letters, and the webhooks of each job, with keys of their own (HKDF). So what is
/// signed for one purpose proves nothing for another, and a receiver's key forges neither tick nor letter. docs/signing.md.
/// Safe to share between threads.
class KeyRing {
 public:
  /// What may be shown of a root key.
  struct Key {
    KeyRole role;
    std::optional<Timestamp> until;  // retired keys only
    std::string fingerprint;         // first 8 hex digits of SHA-256 of the key: for people, tells nothing of it

    [[nodiscard]] bool valid_at(Timestamp now) const { return !until || now < *until; }
  };

  /// Text form: keys separated by newlines or commas, each "[current|next|retired] whsec_<base64> [until <RFC 3339>]";
  /// a bare key is `current`; '#' starts a comment. Exactly one current; secrets of 24 to 64 bytes.
  /// Throws std::invalid_argument that names the line and the fault, never the secret.
  static KeyRing parse(std::string_view text, const std::string& where);

  /// TAKT_SIGNING_KEYS, or the file named by TAKT_SIGNING_KEYS_FILE, which must not be accessible by group or others.
  /// Throws std::invalid_argument with what to do.
  static KeyRing from_environment();
  static KeyRing from_file(const std::string& path);

  /// The current key, then next ones, then retired ones.
  [[nodiscard]] std::vector<Key> keys() const;

  [[nodiscard]] const SigningKeys& ticks() const { return ticks_; }
  [[nodiscard]] const SigningKeys& letters() const { return letters_; }
  /// Derived at a job's first use and remembered. Ask once a run, not once an item.
  [[nodiscard]] std::shared_ptr<const SigningKeys> webhooks(const std::string& job) const;

  /// What the receiver of a job's webhooks is given, as "whsec_<base64>". Of several in this role: the first next one, the retired
  /// one that ends last. Nothing if there is none, or if it has ended by `now`.
  [[nodiscard]] std::optional<Secret> webhook_secret(const std::string& job, KeyRole role, Timestamp now) const;

 private:
  struct Root {
    Key shown;
    Secret secret;
  };
  /// Of each job that asked; at most kMaxRememberedJobs of them.
  struct Webhooks {
    std::mutex mutex;
    std::map<std::string, std::shared_ptr<const SigningKeys>, std::less<>> of_job;  // guarded by mutex
  };

  explicit KeyRing(std::vector<Root> roots);
  static Root parse_root(std::string_view entry, const std::string& where);
  static SigningKeys keys_for(const std::vector<Root>& roots, const std::string& purpose);

  std::vector<Root> roots_;
  SigningKeys ticks_, letters_;
  std::unique_ptr<Webhooks> webhooks_;
};

/// A fresh "whsec_…" with 32 random bytes.
Secret generate_signing_secret();

/// The bytes of a "whsec_<base64>" of 24 to 64 bytes, else the reason in words.
struct SecretFault {
  std::string message;
};
std::optional<Secret> decode_signing_secret(std::string_view text, SecretFault& fault);

/// A key file's text. Throws std::invalid_argument if it cannot be read, or if others may access it.
Secret read_key_file(const std::string& path);

}  // namespace takt
