#pragma once
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace takt {

/// An IP address, always as 16 bytes. An IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4, IPv4-compatible) is
/// taken as that one, so that no other spelling of it passes.
class IpAddress {
 public:
  /// From what a socket is about to connect to; nullopt for a family that is neither.
  static std::optional<IpAddress> of(const sockaddr& address);
  /// Dotted or colon form, with or without brackets.
  static std::optional<IpAddress> parse(std::string_view text);
  [[nodiscard]] bool in(const IpAddress& network, int bits) const;
  /// 128, or 96 for IPv4: how many bits precede the address's own.
  [[nodiscard]] int family_bits() const;

 private:
  static IpAddress normalised(const std::array<std::uint8_t, 16>& bytes);
  std::array<std::uint8_t, 16> bytes_{};
};

/// Which destinations requests may reach. Rules, each of:
///   10.0.0.0/8, fd00::/8, 192.0.2.7   addresses, checked on the very address that is connected to
///   private                           loopback, link-local (metadata services among them), private, shared, multicast, reserved
///   example.com, *.example.com        host names, before they are resolved; the second means those below it
///   http:, https:                     schemes
///   :25, :1-1023                      ports
/// A destination is refused if any deny rule matches. It is allowed if any allow rule of a host or an address matches, or
/// there is none of these; schemes and ports are further conditions, each of its own kind. A host that is an address has no
/// name, and is judged as an address. Immutable; safe to share between threads.
class OutboundPolicy {
 public:
  /// Permits everything.
  OutboundPolicy() = default;
  /// Throws std::invalid_argument that names the rule at fault.
  OutboundPolicy(const std::vector<std::string>& allow, const std::vector<std::string>& deny);

  /// What can be told of a URL before it is resolved.
  struct Judged {
    std::optional<std::string> refusal;  ///< why it may not be called, in words
    bool by_name = false;                ///< its host is allowed by name: whichever address it has, unless that is denied
  };
  [[nodiscard]] Judged judge_url(const std::string& url) const;
  /// True if no connection may be made to this address. `by_name`: as judge_url() said of the host.
  [[nodiscard]] bool refuses_address(const sockaddr& address, bool by_name) const;

 private:
  struct Rules {
    std::vector<std::pair<IpAddress, int>> networks;
    std::vector<std::string> hosts, schemes;
    std::vector<std::pair<int, int>> ports;
  };
  static Rules parse(const std::vector<std::string>& rules);
  Rules allow_, deny_;
};

}  // namespace takt
