// Destinations: allow rules NUL deny rules NUL URL; rules separated by spaces. Denying "private" must hold for every spelling
// of such an address, a list of networks and hosts allows what either part of it allows, and no rule or URL ends the process
// otherwise than by naming the rule at fault.
#include "core/http/url.h"

#include <arpa/inet.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "core/http/outbound_policy.h"
#include "core/text/text.h"
#include "tests/fuzz/input.h"

namespace {

std::vector<std::string> rules(std::string_view text) {
  std::vector<std::string> found;
  for (const auto rule : takt::split(text, ' ')) {
    if (!rule.empty()) found.emplace_back(rule);
  }
  return found;
}

/// The rules that are of this kind or a condition (scheme, port); `found` says whether any is of the kind.
std::vector<std::string> with_conditions(const std::vector<std::string>& rules, bool networks, bool& found) {
  std::vector<std::string> kept;
  for (const auto& rule : rules) {
    const auto plain = takt::to_lower(takt::trim(rule));
    const bool condition = plain == "http:" || plain == "https:" || (plain.starts_with(':') && plain.find(':', 1) == std::string::npos);
    const bool network = plain == "private" || plain.find('/') != std::string::npos || takt::IpAddress::parse(plain);
    if (!condition && network != networks) continue;
    found = found || !condition;
    kept.push_back(rule);
  }
  return kept;
}

bool allows(const takt::OutboundPolicy& policy, const std::string& url, const sockaddr& address) {
  const auto judged = policy.judge_url(url);
  return !judged.refusal && !policy.refuses_address(address, judged.by_name);
}

/// `url` as if its host had this address, or with its own where it is one.
void require_that_either_part_allows(const std::vector<std::string>& allow, const std::vector<std::string>& deny, const std::string& url) {
  bool any_host = false, any_network = false;
  const auto hosts = with_conditions(allow, false, any_host), networks = with_conditions(allow, true, any_network);
  if (!any_host || !any_network) return;
  for (const char* text : {"10.1.2.3", "8.8.8.8", "127.0.0.1"}) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    ::inet_pton(AF_INET, text, &address.sin_addr);
    const auto& to = reinterpret_cast<const sockaddr&>(address);
    // A list of hosts alone says nothing of addresses, so what is denied is all that is left for it to judge.
    require(allows({allow, deny}, url, to) == (allows({hosts, deny}, url, to) || allows({networks, deny}, url, to)));
  }
}

bool is_private(const in_addr& address) {
  const auto bytes = ntohl(address.s_addr);
  return bytes >> 24U == 10 || bytes >> 24U == 127 || bytes >> 16U == 0xC0A8 || bytes >> 16U == 0xA9FE || bytes >> 20U == 0xAC1;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  Pieces pieces(data, size);
  const auto allow = rules(pieces.next()), deny = rules(pieces.next());
  const std::string text(pieces.rest());
  try {
    const OutboundPolicy policy(allow, deny);
    const auto judged = policy.judge_url(text);
    require(!judged.refusal || !judged.refusal->empty());
    const auto url = parse_url(text);
    if (url && IpAddress::parse(url->host)) require(!judged.by_name);
    require_that_either_part_allows(allow, deny, text);
  } catch (const std::invalid_argument& error) {
    require(std::strlen(error.what()) > 0);
  }

  const auto url = parse_url(text);
  if (!url) return 0;
  static const OutboundPolicy closed({}, {"private"});
  if (url->has_user) require(closed.judge_url(text).refusal.has_value());
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  if (::inet_pton(AF_INET, url->host.c_str(), &v4.sin_addr) == 1 && is_private(v4.sin_addr)) {
    require(closed.refuses_address(reinterpret_cast<const sockaddr&>(v4), false));
    sockaddr_in6 mapped{};
    mapped.sin6_family = AF_INET6;
    mapped.sin6_addr.s6_addr[10] = mapped.sin6_addr.s6_addr[11] = 0xFF;
    std::memcpy(&mapped.sin6_addr.s6_addr[12], &v4.sin_addr, 4);
    require(closed.refuses_address(reinterpret_cast<const sockaddr&>(mapped), true));
  }
  return 0;
}
