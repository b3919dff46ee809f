#include "core/text/secret.h"

#include <openssl/crypto.h>

#include <utility>

namespace takt {

void wipe(std::string& text) {
  if (!text.empty()) OPENSSL_cleanse(text.data(), text.size());
  text.clear();
}

void Secret::wipe() { takt::wipe(bytes_); }

// Moves copy and wipe: a short string's bytes would otherwise stay behind in the moved-from object.
Secret::Secret(Secret&& other) noexcept : bytes_(other.bytes_) { other.wipe(); }  // NOLINT(performance-move-constructor-init)

Secret& Secret::operator=(Secret&& other) noexcept {
  if (this != &other) {
    wipe();
    bytes_ = other.bytes_;
    other.wipe();
  }
  return *this;
}

Secret::~Secret() { wipe(); }

}  // namespace takt
