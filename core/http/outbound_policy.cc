#include "core/http/outbound_policy.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>

#include "core/http/url.h"
#include "core/text/text.h"

namespace takt {

namespace {

/// IANA's special-purpose registries (RFC 6890 and its updates): what is not a public unicast address.
constexpr std::array kPrivate{
    "0.0.0.0/8",      "10.0.0.0/8",    "100.64.0.0/10",  "127.0.0.0/8",    "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24",   "192.0.2.0/24",  "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",  "198.51.100.0/24",
    "203.0.113.0/24", "224.0.0.0/4",   "240.0.0.0/4",    "::/127",         "64:ff9b:1::/48", "100::/64",
    "2001::/23",      "2001:db8::/32", "fc00::/7",       "fe80::/10",      "fec0::/10",      "ff00::/8",
};

bool host_matches(const std::string& rule, const std::string& host) {
  if (!rule.starts_with("*.")) return rule == host;
  return host.size() > rule.size() - 1 && host.ends_with(std::string_view(rule).substr(1));
}

bool parse_network(std::string_view rule, std::pair<IpAddress, int>& network) {
  const auto slash = rule.find('/');
  const auto address = IpAddress::parse(rule.substr(0, slash));
  if (!address) return false;
  int bits = 128 - address->family_bits();
  if (slash != std::string_view::npos) {
    const auto text = rule.substr(slash + 1);
    int given = -1;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), given);
    if (fault != std::errc() || end != text.data() + text.size() || given < 0 || given > bits) return false;
    bits = given;
  }
  network = {*address, address->family_bits() + bits};
  return true;
}

bool parse_ports(std::string_view text, std::pair<int, int>& ports) {
  const auto dash = text.find('-');
  const auto number = [](std::string_view digits, int& value) {
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return fault == std::errc() && end == digits.data() + digits.size() && value >= 0 && value <= 65535;
  };
  if (!number(text.substr(0, dash), ports.first)) return false;
  ports.second = ports.first;
  return dash == std::string_view::npos || (number(text.substr(dash + 1), ports.second) && ports.second >= ports.first);
}

}  // namespace

IpAddress IpAddress::normalised(const std::array<std::uint8_t, 16>& bytes) {
  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  static constexpr std::array<std::uint8_t, 12> kNat64{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0};
  static constexpr std::array<std::uint8_t, 12> kCompatible{};
  IpAddress result;
  const std::uint8_t* four = nullptr;
  const bool tiny = std::all_of(bytes.begin(), bytes.begin() + 14, [](std::uint8_t byte) { return byte == 0; });  // ::, ::1
  if (std::equal(kMapped.begin(), kMapped.end(), bytes.begin()) || std::equal(kNat64.begin(), kNat64.end(), bytes.begin()) ||
      (!tiny && std::equal(kCompatible.begin(), kCompatible.end(), bytes.begin()))) {
    four = &bytes[12];
  } else if (bytes[0] == 0x20 && bytes[1] == 0x02) {  // 6to4
    four = &bytes[2];
  }
  if (four == nullptr) {
    result.bytes_ = bytes;
  } else {
    std::copy(kMapped.begin(), kMapped.end(), result.bytes_.begin());
    std::copy(four, four + 4, result.bytes_.begin() + 12);
  }
  return result;
}

std::optional<IpAddress> IpAddress::of(const sockaddr& address) {
  std::array<std::uint8_t, 16> bytes{};
  if (address.sa_family == AF_INET) {
    bytes[10] = bytes[11] = 0xff;
    std::memcpy(&bytes[12], &reinterpret_cast<const sockaddr_in&>(address).sin_addr, 4);
  } else if (address.sa_family == AF_INET6) {
    std::memcpy(bytes.data(), &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, 16);
  } else {
    return std::nullopt;
  }
  return normalised(bytes);
}

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  if (text.starts_with('[') && text.ends_with(']')) text = text.substr(1, text.size() - 2);
  const std::string plain(text.substr(0, text.find('%')));  // without a zone
  std::array<std::uint8_t, 16> bytes{};
  if (inet_pton(AF_INET6, plain.c_str(), bytes.data()) == 1) return normalised(bytes);
  bytes = {};
  bytes[10] = bytes[11] = 0xff;
  if (inet_pton(AF_INET, plain.c_str(), &bytes[12]) == 1) return normalised(bytes);
  return std::nullopt;
}

int IpAddress::family_bits() const {
  return bytes_[10] == 0xff && bytes_[11] == 0xff &&
                 std::all_of(bytes_.begin(), bytes_.begin() + 10, [](std::uint8_t byte) { return byte == 0; })
             ? 96
             : 0;
}

bool IpAddress::in(const IpAddress& network, int bits) const {
  const auto whole = static_cast<std::size_t>(bits / 8);
  if (!std::equal(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(whole), network.bytes_.begin())) return false;
  const int rest = bits % 8;
  if (rest == 0) return true;
  const auto mask = static_cast<std::uint8_t>(0xff << (8 - rest));
  return (bytes_[whole] & mask) == (network.bytes_[whole] & mask);
}

OutboundPolicy::Rules OutboundPolicy::parse(const std::vector<std::string>& rules) {
  Rules parsed;
  for (const auto& given : rules) {
    const std::string rule = to_lower(trim(given));
    std::pair<IpAddress, int> network;
    std::pair<int, int> ports;
    if (rule == "private") {
      for (const char* text : kPrivate) {
        parse_network(text, network);
        parsed.networks.push_back(network);
      }
    } else if (rule == "http:" || rule == "https:") {
      parsed.schemes.push_back(rule.substr(0, rule.size() - 1));
    } else if (rule.starts_with(':') && rule.find(':', 1) == std::string::npos) {
      if (!parse_ports(std::string_view(rule).substr(1), ports))
        throw std::invalid_argument("\"" + printable(given, 80) + "\" is not a port or range of ports");
      parsed.ports.push_back(ports);
    } else if (parse_network(rule, network)) {
      parsed.networks.push_back(network);
    } else if (const auto letters = rule.starts_with("*.") ? std::string_view(rule).substr(2) : std::string_view(rule);
               !letters.empty() && letters.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-._") == std::string_view::npos &&
               letters.find_first_of("abcdefghijklmnopqrstuvwxyz") != std::string_view::npos) {
      parsed.hosts.push_back(rule);
    } else {
      throw std::invalid_argument(
          "\"" + printable(given, 80) +
          "\" is none of: an address or network, private, a host name (*. before it for those below), http:, https:, :port");
    }
  }
  return parsed;
}

OutboundPolicy::OutboundPolicy(const std::vector<std::string>& allow, const std::vector<std::string>& deny)
    : allow_(parse(allow)), deny_(parse(deny)) {}

OutboundPolicy::Judged OutboundPolicy::judge_url(const std::string& text) const {
  const auto url = parse_url(text);
  if (!url) return {"is not a URL"};
  if (url->has_user) return {"holds user information"};
  std::string host = url->host;
  if (host.ends_with('.')) host.pop_back();
  const auto& scheme = url->scheme;
  int port = 0;
  std::from_chars(url->port.data(), url->port.data() + url->port.size(), port);

  const auto any_host = [&](const Rules& rules) {
    return std::any_of(rules.hosts.begin(), rules.hosts.end(), [&](const std::string& rule) { return host_matches(rule, host); });
  };
  const auto any_scheme = [&](const Rules& rules) {
    return std::find(rules.schemes.begin(), rules.schemes.end(), scheme) != rules.schemes.end();
  };
  const auto any_port = [&](const Rules& rules) {
    return std::any_of(rules.ports.begin(), rules.ports.end(),
                       [&](const auto& range) { return port >= range.first && port <= range.second; });
  };
  if (any_scheme(deny_) || (!allow_.schemes.empty() && !any_scheme(allow_)))
    return {"has the scheme " + scheme + ", which the outbound policy refuses"};
  if (any_port(deny_) || (!allow_.ports.empty() && !any_port(allow_)))
    return {"has the port " + url->port + ", which the outbound policy refuses"};
  const bool by_name = !IpAddress::parse(host) && any_host(allow_);
  // Without a network that is allowed no address can make good for the name.
  const bool hopeless = !by_name && !allow_.hosts.empty() && allow_.networks.empty();
  if (any_host(deny_) || hopeless) return {"has a host that the outbound policy refuses"};
  return {std::nullopt, by_name};
}

bool OutboundPolicy::refuses_address(const sockaddr& address, bool by_name) const {
  if (allow_.networks.empty() && deny_.networks.empty()) return false;
  const auto ip = IpAddress::of(address);
  if (!ip) return true;
  const auto any = [&](const Rules& rules) {
    return std::any_of(rules.networks.begin(), rules.networks.end(),
                       [&](const auto& network) { return ip->in(network.first, network.second); });
  };
  return any(deny_) || (!by_name && !allow_.networks.empty() && !any(allow_));
}

}  // namespace takt
