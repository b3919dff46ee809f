#include "core/db/deadline.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <future>
#include <thread>

#include "core/db/database.h"
#include "tests/support/fixture.h"
#include "tests/support/listening.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

double seconds_since(SteadyTime began) { return seconds_between(began, std::chrono::steady_clock::now()); }

/// A server process that is stopped, and goes on at the end, or by itself where the test would wait for ever.
class Frozen {
 public:
  explicit Frozen(std::int64_t pid) : pid_(static_cast<pid_t>(pid)) {
    EXPECT_EQ(::kill(pid_, SIGSTOP), 0);
    thaw_ = std::thread([this] {
      end_.get_future().wait_for(20s);
      ::kill(pid_, SIGCONT);
    });
  }
  ~Frozen() {
    end_.set_value();
    thaw_.join();
  }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

 private:
  pid_t pid_;
  std::promise<void> end_;
  std::thread thaw_;
};

std::int64_t backend_of(Session& on) { return on.exec(std::string("SELECT pg_backend_pid()"), {}).integer(0, 0); }

/// A second for a statement, and 200 ms more before it is given up; the watchdog looks once a second.
DatabaseSettings hasty() {
  DatabaseSettings settings;
  settings.statement_timeout = 1s;
  settings.answer_grace = 200ms;
  settings.pool = 1;
  return settings;
}
constexpr double kSeconds = 5 * kPatience;

constexpr Statement kPrepared{"prepared", "SELECT $1::int"};
constexpr Statement kOther{"other", "SELECT $1::int + 1"};

/// `call` says itself when its server is frozen: with the reference it is given.
using Freeze = std::function<void(Session&)>;
void expect_given_up(const TestDatabase& database, DatabaseSettings settings, const std::string& what,
                     const std::function<void(DatabaseConnection&, const Freeze&)>& call) {
  const auto connection = connect_database(Secret(database.url()), settings);
  std::optional<Frozen> frozen;
  SteadyTime began;
  const Freeze freeze = [&](Session& on) {
    frozen.emplace(backend_of(on));
    began = std::chrono::steady_clock::now();
  };
  try {
    call(*connection, freeze);
    ADD_FAILURE() << what << ": it was answered";
  } catch (const DatabaseUnavailable& error) {
    EXPECT_NE(std::string(error.what()).find("the server did not answer for "), std::string::npos) << what << ": " << error.what();
    EXPECT_EQ(error.sqlstate(), "") << what;
  } catch (const std::exception& error) {
    ADD_FAILURE() << what << ": " << error.what();
  }
  EXPECT_LT(seconds_since(began), kSeconds) << what;
  EXPECT_FALSE(connection->usable()) << what;
}

TEST(FrozenServer, EveryCallEndsAndSaysWhy) {
  TestDatabase database(false);
  std::vector<std::thread> calls;
  const auto expect = [&](const std::string& what, const std::function<void(DatabaseConnection&, const Freeze&)>& call,
                          bool pooler = false) {
    calls.emplace_back([&database, what, call, pooler] {
      auto settings = hasty();
      settings.transaction_pooler = pooler;
      expect_given_up(database, settings, what, call);
    });
  };
  expect("a statement", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.session().exec(std::string("SELECT 1"), {});
  });
  expect("a prepared one", [](DatabaseConnection& c, const Freeze& freeze) {
    c.session().exec(kPrepared, Params::of(1));
    freeze(c.session());
    c.session().exec(kPrepared, Params::of(2));
  });
  expect("one that is prepared first", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.session().exec(kOther, Params::of(1));
  });
  expect("a large one", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.session().exec(std::string("SELECT length($1)"), Params::of(std::string(50'000'000, 'x')));
  });
  expect("a script", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.session().script("SELECT 1; SELECT 2");
  });
  expect("one under way", [](DatabaseConnection& c, const Freeze& freeze) {
    auto& session = c.session();
    const auto pid = backend_of(session);
    freeze(session);
    ::kill(static_cast<pid_t>(pid), SIGCONT);
    std::thread later([pid] {
      std::this_thread::sleep_for(100ms);
      ::kill(static_cast<pid_t>(pid), SIGSTOP);
    });
    try {
      session.exec(std::string("SELECT pg_sleep(10)"), {});
    } catch (...) {
      later.join();
      throw;
    }
    later.join();
  });
  expect("BEGIN", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.transaction([](Session&) {});
  });
  expect("a statement of a transaction", [](DatabaseConnection& c, const Freeze& freeze) {
    c.transaction([&](Session& on) {
      freeze(on);
      on.exec(std::string("SELECT 1"), {});
    });
  });
  expect("COMMIT", [](DatabaseConnection& c, const Freeze& freeze) { c.transaction([&](Session& on) { freeze(on); }); });
  expect(
      "behind a pooler",
      [](DatabaseConnection& c, const Freeze& freeze) {
        freeze(c.session());
        c.session().exec(kPrepared, Params::of(1));
      },
      true);
  expect(
      "COMMIT behind a pooler", [](DatabaseConnection& c, const Freeze& freeze) { c.transaction([&](Session& on) { freeze(on); }); }, true);
  expect("LISTEN", [](DatabaseConnection& c, const Freeze& freeze) {
    freeze(c.session());
    c.wait_notifications(0ms);
  });
  for (auto& call : calls) call.join();
}

TEST(FrozenServer, ARollbackAndACloseEndToo) {
  TestDatabase database(false);
  const auto settings = hasty();
  struct Own {};
  std::thread rollback([&] {
    const auto connection = connect_database(Secret(database.url()), settings);
    std::optional<Frozen> frozen;
    const auto began = std::chrono::steady_clock::now();
    EXPECT_THROW(connection->transaction([&](Session& on) {
      frozen.emplace(backend_of(on));
      throw Own();
    }),
                 Own);
    EXPECT_LT(seconds_since(began), kSeconds);
    EXPECT_FALSE(connection->usable());
  });
  auto listening = connect_database(Secret(database.url()), settings);
  listening->wait_notifications(0ms);
  const Frozen frozen(backend_of(listening->session()));
  const auto began = std::chrono::steady_clock::now();
  listening.reset();
  EXPECT_LT(seconds_since(began), kSeconds);
  rollback.join();
}

TEST(FrozenServer, ThePoolGoesOnWithANewConnection) {
  TestDatabase database(false);
  Database pool(Secret(database.url()), hasty());
  const Frozen frozen(pool.exec(std::string("SELECT pg_backend_pid()")).integer(0, 0));
  EXPECT_THROW(pool.exec(std::string("SELECT 1")), DatabaseUnavailable);
  EXPECT_EQ(pool.exec(std::string("SELECT 2")).integer(0, 0), 2);
}

TEST(FrozenServer, AConnectEndsWhateverTheUrlSays) {
  for (const char* given : {"0", "-1", "%200", "+0"}) {
    const Listening silent(8);
    const std::string url = "postgresql://nobody@127.0.0.1:" + std::to_string(silent.port()) + "/none?connect_timeout=";
    auto settings = hasty();
    settings.connect_timeout = 2s;
    const auto began = std::chrono::steady_clock::now();
    auto connecting = std::async(std::launch::async, [&] { return connect_database(Secret(url + given), settings); });
    EXPECT_EQ(connecting.wait_for(10s), std::future_status::ready) << given;
    ::shutdown(silent.socket(), SHUT_RDWR);
    EXPECT_THROW(connecting.get(), DatabaseUnavailable) << given;
    EXPECT_GT(seconds_since(began), 1) << given << ": nobody refused it";
    EXPECT_LT(seconds_since(began), kSeconds) << given;
  }
}

TEST(Deadline, LeavesAloneWhatIsNoWaitForAnAnswer) {
  TestDatabase database(false);
  const auto connection = connect_database(Secret(database.url()), hasty());
  std::this_thread::sleep_for(2500ms);
  EXPECT_EQ(connection->session().exec(std::string("SELECT 1"), {}).integer(0, 0), 1) << "an idle connection";
  EXPECT_TRUE(connection->wait_notifications(2500ms).empty()) << "nobody says that work is due";
  connection->transaction([&](Session& on) {
    on.exec(std::string("SELECT 1"), {});
    std::this_thread::sleep_for(2500ms);
    on.exec(std::string("SELECT 1"), {});
  });
  EXPECT_TRUE(connection->usable());
}

TEST(Deadline, ComesAfterTheServersOwnTimeout) {
  TestDatabase database(false);
  auto settings = hasty();
  settings.statement_timeout = 2s;
  Database pool(Secret(database.url()), settings);
  try {
    pool.exec(std::string("SELECT pg_sleep(10)"));
    ADD_FAILURE() << "it was not ended";
  } catch (const DatabaseError& error) {
    EXPECT_EQ(error.sqlstate(), "57014");
  }
  EXPECT_NO_THROW(pool.exec(std::string("SELECT pg_sleep(1)")));
}

TEST(Deadline, IsWhereTheServersTimeoutIs) {
  TestDatabase database(false);
  const std::string slow = "SELECT pg_sleep(3)";
  std::vector<std::thread> calls;
  for (const char* own : {"5min", "0"}) {
    calls.emplace_back([&, own] {
      Database pool(Secret(database.url() + "?options=-c%20statement_timeout%3D" + own), hasty());
      EXPECT_NO_THROW(pool.exec(slow)) << "its URL says " << own;
    });
  }
  calls.emplace_back([&] {
    auto settings = hasty();
    settings.statement_timeout = 0ms;
    EXPECT_NO_THROW(Database(Secret(database.url()), settings).exec(slow));
  });
  calls.emplace_back([&] {
    const auto connection = connect_database(Secret(database.url()), hasty());
    connection->session().script("SET statement_timeout = 0");
    EXPECT_NO_THROW(connection->outside_transaction(slow)) << "as a migration builds its index";
  });
  for (auto limit : {0ms, 10000ms}) {
    calls.emplace_back([&, limit] {
      const auto connection = connect_database(Secret(database.url()), hasty());
      EXPECT_NO_THROW(connection->transaction([&](Session& on) {
        on.limit_statements(limit);
        on.script(slow);
      }));
      EXPECT_THROW(connection->session().script(slow), DatabaseError) << "it was that transaction's";
    });
  }
  for (auto& call : calls) call.join();
}

TEST(Deadline, IsSetForATransactionAlone) {
  TestDatabase database(false);
  const auto connection = connect_database(Secret(database.url()), hasty());
  EXPECT_THROW(connection->session().limit_statements(1s), std::logic_error);
}

/// Two ends of a TCP connection.
struct Ends {
  Ends() {
    const Listening listening(1);
    near = ::socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_EQ(listening.connect(near), 0);
    far = ::accept(listening.socket(), nullptr, nullptr);
  }
  ~Ends() {
    ::close(near);
    ::close(far);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  int near, far;
};

TEST(Deadline, WaitsForWhatIsUnderWayOnASlowLine) {
  const auto moving = [](bool towards_us) {
    const Ends ends;
    AnswerDeadline deadline(ends.near, 1500ms);
    const RoundTrip trip(deadline, 300ms);
    const char byte = 'x';
    for (int i = 0; i < 10; ++i) {
      std::this_thread::sleep_for(500ms);
      EXPECT_EQ(::send(towards_us ? ends.far : ends.near, &byte, 1, MSG_NOSIGNAL), 1);
      EXPECT_EQ(deadline.given_up_after(), 0ms);
    }
    EXPECT_TRUE(eventually([&] { return deadline.given_up_after() > 5s; })) << "nothing moves any more";
    EXPECT_LT(::send(ends.near, &byte, 1, MSG_NOSIGNAL), 0);
  };
  std::thread request([&] { moving(false); });
  moving(true);
  request.join();
}

TEST(Deadline, TheWatchdogIsThereAsLongAsAConnectionIs) {
  const auto count = [](const char* folder) {
    return std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator());
  };
  const Ends ends;
  auto threads = count("/proc/self/task");
  for (int i = 0; i < 50; ++i) {  // a thread that was joined is still seen for a moment
    std::this_thread::sleep_for(2ms);
    threads = std::min(threads, count("/proc/self/task"));
  }
  const auto descriptors = count("/proc/self/fd");
  for (int i = 0; i < 3; ++i) {
    AnswerDeadline one(ends.near, 1s), two(ends.far, 1s);
    EXPECT_TRUE(eventually([&] { return count("/proc/self/task") == threads + 1; }));
    two.close();
    EXPECT_EQ(count("/proc/self/fd"), descriptors + 1);
  }
  EXPECT_TRUE(eventually([&] { return count("/proc/self/task") == threads; }));
  EXPECT_EQ(count("/proc/self/fd"), descriptors);
}

}  // namespace
}  // namespace takt
