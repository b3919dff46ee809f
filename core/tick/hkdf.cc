#include "core/tick/hkdf.h"

#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include <array>
#include <memory>
#include <stdexcept>

namespace takt {

namespace {

/// OpenSSL wants what it only reads as a pointer to what it may write.
OSSL_PARAM octets(const char* name, std::string_view bytes) {
  return OSSL_PARAM_construct_octet_string(name, const_cast<char*>(bytes.data()), bytes.size());
}

}  // namespace

Secret hkdf_sha256(const Secret& key, std::string_view salt, std::string_view info, std::size_t size) {
  EVP_KDF* algorithm = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(EVP_KDF_CTX_new(algorithm), &EVP_KDF_CTX_free);
  EVP_KDF_free(algorithm);
  std::array<char, 7> digest{"SHA256"};
  std::array<OSSL_PARAM, 5> parameters{OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest.data(), 0),
                                       octets(OSSL_KDF_PARAM_KEY, key.reveal())};
  std::size_t count = 2;
  // Leaving them out is RFC 5869's own default: a salt of zeros, and an empty info.
  if (!salt.empty()) parameters[count++] = octets(OSSL_KDF_PARAM_SALT, salt);
  if (!info.empty()) parameters[count++] = octets(OSSL_KDF_PARAM_INFO, info);
  parameters[count] = OSSL_PARAM_construct_end();
  std::string bytes(size, '\0');
  const bool ok = context && EVP_KDF_derive(context.get(), reinterpret_cast<unsigned char*>(bytes.data()), size, parameters.data()) == 1;
  if (!ok) throw std::runtime_error("OpenSSL offers no HKDF-SHA256");
  Secret derived(bytes);
  wipe(bytes);
  return derived;
}

}  // namespace takt
