// What OpenSSL's HMAC-SHA256 of 512 bytes costs, with a context that is kept and with a new one each time: prints
// "name value" lines.
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>

namespace {

constexpr int kSigned = 500'000;
constexpr std::array<unsigned char, 32> kKey{7};
constexpr std::array<unsigned char, 512> kMessage{1};

void require(bool ok) {
  if (!ok) throw std::runtime_error("OpenSSL refused");
}

template <typename Sign>
double rate(Sign sign) {
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < kSigned; ++i) sign();
  return kSigned / std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

double kept() {
  const std::unique_ptr<EVP_MAC, decltype(&EVP_MAC_free)> mac(EVP_MAC_fetch(nullptr, "HMAC", nullptr), EVP_MAC_free);
  const std::unique_ptr<EVP_MAC_CTX, decltype(&EVP_MAC_CTX_free)> context(EVP_MAC_CTX_new(mac.get()), EVP_MAC_CTX_free);
  char digest[] = "SHA256";
  const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string("digest", digest, 0), OSSL_PARAM_construct_end()};
  require(EVP_MAC_init(context.get(), kKey.data(), kKey.size(), parameters) == 1);
  return rate([&] {
    std::array<unsigned char, 32> out{};
    std::size_t length = 0;
    require(EVP_MAC_init(context.get(), nullptr, 0, nullptr) == 1 && EVP_MAC_update(context.get(), kMessage.data(), kMessage.size()) == 1 &&
            EVP_MAC_final(context.get(), out.data(), &length, out.size()) == 1);
  });
}

double one_shot() {
  return rate([] {
    std::array<unsigned char, 32> out{};
    unsigned length = 0;
    require(HMAC(EVP_sha256(), kKey.data(), kKey.size(), kMessage.data(), kMessage.size(), out.data(), &length) != nullptr);
  });
}

}  // namespace

int main() {
  try {
    std::printf("hmac_kept %.0f\n", kept());
    std::printf("hmac_one_shot %.0f\n", one_shot());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "limits: %s\n", error.what());
    return 1;
  }
}
