#include "core/http/outbound_policy.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cstring>

namespace takt {
namespace {

sockaddr_storage socket_address(const std::string& text) {
  sockaddr_storage storage{};
  auto& four = reinterpret_cast<sockaddr_in&>(storage);
  auto& six = reinterpret_cast<sockaddr_in6&>(storage);
  if (inet_pton(AF_INET, text.c_str(), &four.sin_addr) == 1) {
    four.sin_family = AF_INET;
  } else if (inet_pton(AF_INET6, text.c_str(), &six.sin6_addr) == 1) {
    six.sin6_family = AF_INET6;
  } else {
    ADD_FAILURE() << text;
  }
  return storage;
}

bool refuses(const OutboundPolicy& policy, const std::string& text, bool by_name = false) {
  const auto address = socket_address(text);
  return policy.refuses_address(reinterpret_cast<const sockaddr&>(address), by_name);
}

/// A request to the URL, whose host has this address.
bool refuses_both(const OutboundPolicy& policy, const std::string& url, const std::string& address) {
  const auto judged = policy.judge_url(url);
  return judged.refusal || refuses(policy, address, judged.by_name);
}

TEST(OutboundPolicy, KnowsEverythingThatIsNotPublic) {
  const OutboundPolicy policy({}, {"private"});
  for (const char* address :
       {"127.0.0.1",  "127.255.255.254", "10.1.2.3",  "172.16.0.1",      "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0",         "224.0.0.1", "255.255.255.255", "198.18.0.1",     "192.0.2.1",   "::1",
        "::",         "fe80::1",         "fc00::1",   "fd12:3456::1",    "ff02::1",        "fec0::1",     "2001:db8::1"}) {
    EXPECT_TRUE(refuses(policy, address)) << address;
  }
  for (const char* address : {"93.184.216.34", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0",
                              "169.253.255.255", "2606:4700::1111", "2a00:1450:4001::1"}) {
    EXPECT_FALSE(refuses(policy, address)) << address;
  }
}

TEST(OutboundPolicy, SeesThroughTheOtherSpellingsOfAnIPv4Address) {
  const OutboundPolicy policy({}, {"private"});
  for (const char* address :
       {"::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1"}) {
    EXPECT_TRUE(refuses(policy, address)) << address;
  }
  for (const char* address : {"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"}) EXPECT_FALSE(refuses(policy, address)) << address;
}

TEST(OutboundPolicy, DenyWinsOverAllow) {
  const OutboundPolicy policy({"10.0.0.0/8", "fd00::/8", "192.0.2.7"}, {"10.1.0.0/16"});
  EXPECT_FALSE(refuses(policy, "10.2.0.1"));
  EXPECT_FALSE(refuses(policy, "fd00::9"));
  EXPECT_FALSE(refuses(policy, "192.0.2.7"));
  EXPECT_TRUE(refuses(policy, "10.1.255.255"));
  EXPECT_TRUE(refuses(policy, "192.0.2.8"));
  EXPECT_TRUE(refuses(policy, "8.8.8.8"));
}

TEST(OutboundPolicy, JudgesHostSchemeAndPortBeforeAnythingIsResolved) {
  const OutboundPolicy policy({"https:", ":443", "*.example.com", "shop.example"}, {"metadata.example.com"});
  for (const char* url : {"https://api.example.com/x", "https://SHOP.example./x"}) {
    EXPECT_FALSE(policy.judge_url(url).refusal) << url;
    EXPECT_TRUE(policy.judge_url(url).by_name) << url;
  }
  for (const char* url : {"http://api.example.com/", "https://api.example.com:8443/", "https://example.com/", "https://evil-example.com/",
                          "https://metadata.example.com/", "https://METADATA.example.com./", "https://user@api.example.com/",
                          "https://user:pw@api.example.com/", "https://93.184.216.34/", "not a url"}) {
    EXPECT_TRUE(policy.judge_url(url).refusal) << url;
  }
}

TEST(OutboundPolicy, Finding27_AllowsWhatAnyHostOrAnyNetworkAllows) {
  const OutboundPolicy policy({"10.0.0.0/8", "api.stripe.com", "*.inside.example"}, {"10.6.6.0/24", "bad.inside.example"});
  for (const auto& [url, address] : std::vector<std::pair<const char*, const char*>>{{"https://api.stripe.com/v1", "3.18.12.63"},
                                                                                     {"https://api.stripe.com./v1", "3.18.12.63"},
                                                                                     {"http://billing.internal/", "10.1.2.3"},
                                                                                     {"http://10.1.2.3/", "10.1.2.3"},
                                                                                     {"http://167838211/", "10.1.2.3"},
                                                                                     {"http://a.inside.example/", "2a00::1"}}) {
    EXPECT_FALSE(refuses_both(policy, url, address)) << url;
  }
  for (const auto& [url, address] : std::vector<std::pair<const char*, const char*>>{{"https://api.stripe.com.evil.example/", "3.18.12.63"},
                                                                                     {"https://evil.example/", "3.18.12.63"},
                                                                                     {"http://93.184.216.34/", "93.184.216.34"},
                                                                                     {"https://api.stripe.com/v1", "10.6.6.6"},
                                                                                     {"http://billing.internal/", "10.6.6.6"},
                                                                                     {"http://bad.inside.example/", "10.1.2.3"}}) {
    EXPECT_TRUE(refuses_both(policy, url, address)) << url;
  }
}

TEST(OutboundPolicy, Finding27_SchemesAndPortsAreConditionsOfTheirOwn) {
  const OutboundPolicy policy({"https:", ":443", ":8443", "10.0.0.0/8", "api.stripe.com"}, {});
  EXPECT_FALSE(refuses_both(policy, "https://api.stripe.com/", "3.18.12.63"));
  EXPECT_FALSE(refuses_both(policy, "https://billing.internal:8443/", "10.1.2.3"));
  EXPECT_TRUE(refuses_both(policy, "http://api.stripe.com:443/", "3.18.12.63"));
  EXPECT_TRUE(refuses_both(policy, "https://billing.internal:9000/", "10.1.2.3"));
  const OutboundPolicy secure({"https:"}, {});
  EXPECT_FALSE(refuses_both(secure, "https://anything.example/", "3.18.12.63"));
}

TEST(OutboundPolicy, Finding27_AnAddressHasNoName) {
  const OutboundPolicy networks({"10.0.0.0/8"}, {}), hosts({"api.stripe.com"}, {});
  EXPECT_FALSE(refuses_both(networks, "http://10.1.2.3/", "10.1.2.3"));
  EXPECT_TRUE(refuses_both(networks, "http://169.254.169.254/", "169.254.169.254"));
  EXPECT_FALSE(refuses_both(networks, "http://billing.internal/", "10.1.2.3"));
  EXPECT_TRUE(refuses_both(networks, "http://billing.internal/", "8.8.8.8"));
  for (const char* url : {"http://169.254.169.254/", "http://0xa9fea9fe/", "http://[::ffff:a9fe:a9fe]/", "http://169.254.169.254./"}) {
    EXPECT_TRUE(refuses_both(hosts, url, "169.254.169.254")) << url;
  }
}

TEST(OutboundPolicy, WithoutRulesPermitsEverything) {
  const OutboundPolicy policy;
  EXPECT_FALSE(policy.judge_url("http://localhost:1/").refusal);
  EXPECT_FALSE(refuses(policy, "169.254.169.254"));
}

TEST(OutboundPolicy, NamesTheRuleThatIsWrong) {
  for (const char* rule : {"10.0.0.0/33", "10.0.0/8", "fd00::/129", "ftp:", ":70000", ":9-1", "", "exa mple.com", "*", "12345"}) {
    try {
      OutboundPolicy({}, {rule});
      ADD_FAILURE() << rule;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("\"" + std::string(rule) + "\""), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace takt
