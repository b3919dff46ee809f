#pragma once
#include <optional>
#include <string>

namespace takt {

/// The parts of a URL as libcurl understands them; numeric forms of an IPv4 host are already dotted.
struct Url {
  std::string scheme, host, port;  ///< scheme and host in lower case; the scheme's own port if none is given
  bool has_user = false;           ///< user information, which may be a password
};

/// nullopt if it is not a URL.
std::optional<Url> parse_url(const std::string& text);

}  // namespace takt
