// Key files. What is refused says why, and never shows the secret.
#include <stdexcept>
#include <string>

#include "core/signing.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto keys = takt::KeyRing::parse(text, "fuzz");
    const auto now = *takt::parse_rfc3339("2026-11-21T10:00:00Z");
    require(keys.verify("id", "1", "body", keys.sign("id", 1, "body"), now));
  } catch (const std::invalid_argument& error) {
    const std::string_view words = error.what();
    require(!words.empty());
    const auto secret = text.find("whsec_");
    if (secret != std::string_view::npos && text.size() - secret > 30) require(words.find(text.substr(secret, 30)) == std::string_view::npos);
  }
  return 0;
}
