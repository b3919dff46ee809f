// Key files. What is refused says why, and never shows the secret.
#include <cctype>
#include <stdexcept>
#include <string>

#include "core/tick/signing.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto keys = takt::KeyRing::parse(text, "fuzz");
    const auto now = *takt::parse_rfc3339("2026-11-21T10:00:00Z");
    const auto webhooks = keys.webhooks("job");
    require(keys.ticks().verify("id", "1", "body", keys.ticks().sign("id", 1, "body"), now));
    require(keys.letters().verify("id", "1", "body", keys.letters().sign("id", 1, "body"), now));
    const auto signatures = webhooks->sign_also_retired("id", 1, "body", now);
    require(webhooks->verify("id", "1", "body", signatures, now));
    require(!keys.ticks().verify("id", "1", "body", signatures, now) && !keys.letters().verify("id", "1", "body", signatures, now));
  } catch (const std::invalid_argument& error) {
    const std::string_view words = error.what();
    require(!words.empty());
    // Thirty characters of base64 in a row are a secret, or part of one.
    for (std::size_t at = 0, run = 0; at < text.size(); ++at) {
      run = std::isalnum(static_cast<unsigned char>(text[at])) != 0 || text[at] == '+' || text[at] == '/' ? run + 1 : 0;
      if (run >= 30) require(words.find(text.substr(at + 1 - run, run)) == std::string_view::npos);
    }
  }
  return 0;
}
