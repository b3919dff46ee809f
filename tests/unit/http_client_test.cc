#include "core/http/client.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "core/http/transfer.h"
#include "tests/support/http_server.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

/// Starts a request and waits for its end, at most 20 s.
class Call {
 public:
  Call(HttpClient& client, HttpRequest request) {
    id = client.start(std::move(request), [this](HttpResponse&& answer) {
      const std::scoped_lock lock(mutex_);
      response_ = std::move(answer);
      done_.notify_all();
    });
  }
  HttpResponse wait() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(done_.wait_for(lock, 20s, [&] { return response_.has_value(); }));
    return response_.value_or(HttpResponse{});
  }
  std::uint64_t id = 0;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  std::optional<HttpResponse> response_;
};

HttpRequest post(const std::string& url, Duration timeout = 5s) {
  HttpRequest request;
  request.method = "POST";
  request.url = url;
  request.body = R"({"n":1})";
  request.timeout = timeout;
  request.headers = {{"X-Test", "yes"}};
  return request;
}

void serve_forever(int socket, const std::string& answer) {
  while (!MisbehavingServer::read_request(socket).empty()) MisbehavingServer::send_all(socket, answer);
}

TEST(HttpClient, SendsBodyAndHeadersAndKeepsTheConnection) {
  std::string seen;
  std::mutex mutex;
  MisbehavingServer server([&](int socket) {
    for (std::string request; !(request = MisbehavingServer::read_request(socket)).empty();) {
      const std::scoped_lock lock(mutex);
      seen = request;
      MisbehavingServer::send_all(socket, MisbehavingServer::response(200, "{}", "Content-Type: application/json\r\n"));
    }
  });
  HttpClient client({});
  for (int i = 0; i < 5; ++i) {
    const auto response = Call(client, post(server.url("/x"))).wait();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.content_type, "application/json");
  }
  EXPECT_EQ(server.connections(), 1);
  const std::scoped_lock lock(mutex);
  EXPECT_TRUE(seen.starts_with("POST /x HTTP/1.1\r\n")) << seen;
  EXPECT_NE(seen.find("X-Test: yes"), std::string::npos);
  EXPECT_TRUE(seen.ends_with(R"({"n":1})"));
}

TEST(HttpClient, Finding35_GivesLibcurlEachHeaderAsAnEntryOfItsOwn) {
  Transfer transfer;
  transfer.request.headers = {
      {"Content-Type", "application/json"}, {"webhook-id", "item-7"}, {"X-Empty", ""}, {"traceparent", "00-1-2-01"}};
  transfer.request.body = std::string(1024 * 1024, 'b');
  transfer.easy = curl_easy_init();
  transfer.set_up();
  transfer.configure();
  std::vector<std::string> entries;
  for (const auto* entry = transfer.header_list.data(); entry != nullptr; entry = entry->next) entries.emplace_back(entry->data);
  EXPECT_EQ(entries, (std::vector<std::string>{"Content-Type: application/json", "webhook-id: item-7", "X-Empty;", "traceparent: 00-1-2-01",
                                               "Expect:"}));
  curl_easy_cleanup(transfer.easy);
}

TEST(HttpClient, EndsWhatHangsAtItsTimeout) {
  MisbehavingServer server([](int socket) {
    MisbehavingServer::read_request(socket);
    MisbehavingServer::read_request(socket);  // until the client gives up
  });
  HttpClient client({});
  const auto response = Call(client, post(server.url(), 200ms)).wait();
  EXPECT_EQ(response.fault, HttpFault::timeout);
  EXPECT_LT(response.seconds, 5);
}

TEST(HttpClient, StopsReadingAnEndlessBodyAndHugeHeaders) {
  MisbehavingServer endless([](int socket) {
    MisbehavingServer::read_request(socket);
    MisbehavingServer::send_all(socket, "HTTP/1.1 200 OK\r\n\r\n" + std::string(1024 * 1024, 'x'));
  });
  MisbehavingServer huge([](int socket) {
    MisbehavingServer::read_request(socket);
    std::string head = "HTTP/1.1 200 OK\r\n";
    for (int i = 0; i < 2000; ++i) head += "X-" + std::to_string(i) + ": " + std::string(90, 'h') + "\r\n";
    MisbehavingServer::send_all(socket, head + "Content-Length: 0\r\n\r\n");
  });
  HttpClient client({});
  const auto body = Call(client, post(endless.url())).wait();
  EXPECT_EQ(body.fault, HttpFault::too_large);
  EXPECT_LE(body.body.size(), 64U * 1024);
  EXPECT_EQ(Call(client, post(huge.url())).wait().fault, HttpFault::too_large);
}

TEST(HttpClient, NamesConnectionFaults) {
  HttpClient client({});
  EXPECT_EQ(Call(client, post("http://127.0.0.1:1/")).wait().fault, HttpFault::connect);
  EXPECT_EQ(Call(client, post("http://no-such-host.invalid/")).wait().fault, HttpFault::resolve);
  MisbehavingServer resetting([](int socket) { MisbehavingServer::read_request(socket); });
  EXPECT_EQ(Call(client, post(resetting.url())).wait().fault, HttpFault::protocol);
  MisbehavingServer plain([](int socket) {
    MisbehavingServer::send_all(socket, "not TLS at all\r\n\r\n");
    MisbehavingServer::read_request(socket);
  });
  auto to_tls = plain.url();
  to_tls.replace(0, 4, "https");
  EXPECT_EQ(Call(client, post(to_tls)).wait().fault, HttpFault::tls);
}

TEST(HttpClient, DoesNotFollowRedirects) {
  MisbehavingServer server(
      [](int socket) { serve_forever(socket, MisbehavingServer::response(302, "", "Location: http://127.0.0.1:1/\r\n")); });
  HttpClient client({});
  EXPECT_EQ(Call(client, post(server.url())).wait().status, 302);
}

TEST(HttpClient, ConnectsToNoAddressThatThePolicyRefusesHoweverItIsWritten) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  const auto port = server.url("").substr(server.url("").rfind(':'));
  HttpClient closed({50, 200, OutboundPolicy({}, {"private"})});
  // Decimal, octal, hexadecimal and short forms, IPv4-mapped IPv6, and a name that resolves to a loopback address.
  for (const std::string host :
       {"127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0"}) {
    const auto response = Call(closed, post("http://" + host + port)).wait();
    EXPECT_EQ(response.fault, HttpFault::refused) << host << ": " << response.error;
    EXPECT_NE(response.error.find("outbound policy"), std::string::npos) << response.error;
  }
  EXPECT_EQ(Call(closed, post("http://user:secret@127.0.0.1" + port)).wait().fault, HttpFault::refused);
  EXPECT_EQ(server.connections(), 0) << "nothing was connected to";
  HttpClient open({50, 200});
  EXPECT_EQ(Call(open, post("http://127.1" + port)).wait().status, 200) << "the address is right, and only the policy refused it";
}

TEST(HttpClient, Finding27_AHostThatIsAllowedByNameLendsItsConnectionToNoOther) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  const auto port = server.url("").substr(server.url("").rfind(':'));
  const auto to = [&](HttpClient& client, const std::string& host) { return Call(client, post("http://" + host + port)).wait(); };
  HttpClient by_name({50, 200, OutboundPolicy({"10.0.0.0/8", "a.localhost"}, {})});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(to(by_name, "A.localhost").status, 200) << "whichever address it has";
    EXPECT_EQ(to(by_name, "b.localhost").fault, HttpFault::refused) << "though it has the same, with a connection that is kept";
    EXPECT_EQ(to(by_name, "127.0.0.1").fault, HttpFault::refused);
  }
  EXPECT_EQ(server.connections(), 1);
  HttpClient by_network({50, 200, OutboundPolicy({"127.0.0.0/8", "api.stripe.com"}, {})});
  EXPECT_EQ(to(by_network, "b.localhost").status, 200);
  EXPECT_EQ(to(by_network, "127.1").status, 200);
  HttpClient denied({50, 200, OutboundPolicy({"a.localhost"}, {"private"})});
  EXPECT_EQ(to(denied, "a.localhost").fault, HttpFault::refused) << "what is denied is denied under any name";
}

TEST(HttpClient, CancelsAndShutsDownWithRequestsInFlight) {
  MisbehavingServer server([](int socket) {
    MisbehavingServer::read_request(socket);
    MisbehavingServer::read_request(socket);
  });
  auto client = std::make_unique<HttpClient>(HttpClient::Settings{});
  Call first(*client, post(server.url(), 60s)), second(*client, post(server.url(), 60s));
  client->cancel(first.id);
  EXPECT_EQ(first.wait().fault, HttpFault::cancelled);
  client.reset();
  EXPECT_EQ(second.wait().fault, HttpFault::cancelled);
}

TEST(HttpClient, CancelsWhileItConnects) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  HttpClient client({});
  for (int i = 0; i < 200; ++i) {
    Call call(client, post(server.url()));
    client.cancel(call.id);
    const auto response = call.wait();
    EXPECT_TRUE(response.fault == HttpFault::cancelled || response.status == 200);
  }
  EXPECT_EQ(Call(client, post(server.url())).wait().status, 200) << "the numbers of closed sockets are used again";
}

TEST(HttpClient, BoundsConnectionsToOneHost) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  HttpClient client({.host_connections = 3, .idle_connections = 10});
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 60; ++i) calls.push_back(std::make_unique<Call>(client, post(server.url())));
  for (auto& call : calls) EXPECT_EQ(call->wait().status, 200);
  EXPECT_LE(server.connections(), 3);
}

TEST(HttpClient, KeepsTheBoundOfAHostOverSeveralThreads) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  HttpClient client({.host_connections = 5, .idle_connections = 10, .threads = 3});
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 300; ++i) calls.push_back(std::make_unique<Call>(client, post(server.url())));
  for (int i = 0; i < 300; i += 7) client.cancel(calls[static_cast<std::size_t>(i)]->id);
  for (int i = 0; i < 300; ++i) {
    const auto response = calls[static_cast<std::size_t>(i)]->wait();
    EXPECT_TRUE(response.status == 200 || (i % 7 == 0 && response.fault == HttpFault::cancelled)) << response.error;
  }
  // Those that were cancelled on their way took their connection with them.
  EXPECT_LE(server.connections(), 5 + 43);
}

TEST(HttpClient, GoesOnInTheThreadWhoseCallbackStartedTheNext) {
  MisbehavingServer server([](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); });
  HttpClient client({.host_connections = 10, .idle_connections = 10, .threads = 2});
  std::mutex mutex;
  std::condition_variable ended;
  std::set<std::thread::id> threads;
  int left = 2, moved = 0;
  const std::function<void(int, std::thread::id)> chain = [&](int n, std::thread::id before) {
    client.start(post(server.url()), [&, n, before](HttpResponse&& response) {
      EXPECT_EQ(response.status, 200);
      const auto here = std::this_thread::get_id();
      {
        const std::scoped_lock lock(mutex);
        threads.insert(here);
        if (before != std::thread::id() && here != before) ++moved;
      }
      if (n > 1) return chain(n - 1, here);
      const std::scoped_lock lock(mutex);
      if (--left == 0) ended.notify_one();
    });
  };
  chain(50, {});
  chain(50, {});
  std::unique_lock lock(mutex);
  ASSERT_TRUE(ended.wait_for(lock, 20s, [&] { return left == 0; }));
  EXPECT_EQ(threads.size(), 2U) << "two at a time are spread over two threads";
  EXPECT_EQ(moved, 0);
  EXPECT_LE(server.connections(), 2);
}

TEST(HttpClient, CancelsWhatWaitsForAPlaceAtItsEndToo) {
  MisbehavingServer server([](int socket) {
    MisbehavingServer::read_request(socket);
    MisbehavingServer::read_request(socket);
  });
  auto client = std::make_unique<HttpClient>(HttpClient::Settings{.host_connections = 1, .threads = 2});
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 10; ++i) calls.push_back(std::make_unique<Call>(*client, post(server.url(), 60s)));
  client->cancel(calls.back()->id);
  EXPECT_EQ(calls.back()->wait().fault, HttpFault::cancelled);
  client.reset();
  for (const auto& call : calls) EXPECT_EQ(call->wait().fault, HttpFault::cancelled);
}

/// While it lives, the process may open `more` descriptors, and no further ones.
class FewDescriptors {
 public:
  explicit FewDescriptors(rlim_t more) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const int lowest_free = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
    ::close(lowest_free);
    few_ = {static_cast<rlim_t>(lowest_free) + more, before_.rlim_max};
    limit(true);
  }
  ~FewDescriptors() { limit(false); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

  void limit(bool on) const { ::setrlimit(RLIMIT_NOFILE, on ? &few_ : &before_); }

 private:
  rlimit before_{}, few_{};
};

TEST(HttpClient, SaysThatTheProcessLackedADescriptorEvenIfOneIsFreeAgain) {
  MisbehavingServer server([](int socket) {
    MisbehavingServer::read_request(socket);
    MisbehavingServer::send_all(socket, MisbehavingServer::response(200, "", "Connection: close\r\n"));
  });
  HttpClient client({});
  const FewDescriptors none(0);
  std::atomic<bool> over{false};
  std::thread flicker([&] {
    for (bool on = true; !over; on = !on) none.limit(on);
  });
  int exhausted = 0;
  for (int i = 0; i < 300; ++i) {
    // Short, since the server, in this process, may be without a descriptor for its end.
    const auto response = Call(client, post(server.url(), 10ms)).wait();
    EXPECT_NE(response.fault, HttpFault::connect) << response.error;
    if (response.fault == HttpFault::exhausted) ++exhausted;
  }
  over = true;
  flicker.join();
  EXPECT_GT(exhausted, 0);
}

// libcurl closes by itself what it has not seen connected, and libuv ends the process where it is to look at what is closed.
TEST(HttpClient, CallsThatAreCancelledWhileTheyConnectEndNothingElse) {
  const auto serve = [](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); };
  MisbehavingServer server(serve);
  HttpClient client({.host_connections = 50, .idle_connections = 200});
  for (int round = 0; round < 200; ++round) {
    std::vector<std::unique_ptr<Call>> calls;
    for (int i = 0; i < 20; ++i) calls.push_back(std::make_unique<Call>(client, post(server.url())));
    for (int i = 0; i < 20; i += 2) client.cancel(calls[static_cast<std::size_t>(i)]->id);
    for (int i = 0; i < 20; ++i) {
      const auto response = calls[static_cast<std::size_t>(i)]->wait();
      EXPECT_TRUE(response.status == 200 || (i % 2 == 0 && response.fault == HttpFault::cancelled)) << to_string(response.fault);
    }
  }
}

TEST(HttpClient, SharesWhatTheLimitOfDescriptorsLeavesAmongAllHosts) {
  const auto serve = [](int socket) { serve_forever(socket, MisbehavingServer::response(200, "")); };
  MisbehavingServer one(serve), other(serve);
  std::vector<std::unique_ptr<Call>> calls;
  const FewDescriptors few(60);
  HttpClient client({.host_connections = 50, .idle_connections = 200, .reserved_descriptors = 40});
  ASSERT_GE(client.connections(), 1);
  ASSERT_LE(client.connections(), 20);
  for (int i = 0; i < 200; ++i) calls.push_back(std::make_unique<Call>(client, post(i % 3 == 0 ? other.url() : one.url())));
  for (int i = 0; i < 200; i += 7) client.cancel(calls[static_cast<std::size_t>(i)]->id);
  for (int i = 0; i < 200; ++i) {
    const auto response = calls[static_cast<std::size_t>(i)]->wait();
    EXPECT_TRUE(response.status == 200 || (i % 7 == 0 && response.fault == HttpFault::cancelled))
        << to_string(response.fault) << ": " << response.error;
  }
  EXPECT_EQ(Call(client, post(other.url())).wait().status, 200);
}

}  // namespace
}  // namespace takt
