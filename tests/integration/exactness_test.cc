// What is accepted is what is handled: random JSON on every way through a whole installation, from a caller to the handler, to the
// dead letter, the archive and the replay, compared as PostgreSQL prints it: canonical JSON, byte for byte.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "core/amqp/topology.h"
#include "core/config/apply.h"
#include "core/text/exact_json.h"
#include "core/tick/tick.h"
#include "core/tick/tick_message.h"
#include "dispatcher/dispatcher.h"
#include "dlq/archive.h"
#include "dlq/operations.h"
#include "tests/support/fixture.h"
#include "tests/support/random_json.h"
#include "worker/worker.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr int kRandomValues = 200;

int depth_of(const std::string& json) {
  int depth = 0, most = 0;
  bool text = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (text && json[i] == '\\')
      ++i;
    else if (json[i] == '"')
      text = !text;
    else if (!text && (json[i] == '{' || json[i] == '['))
      most = std::max(most, ++depth);
    else if (!text && (json[i] == '}' || json[i] == ']'))
      --depth;
  }
  return most;
}

std::string nested(int levels) {
  return std::string(static_cast<std::size_t>(levels), '[') + std::string(static_cast<std::size_t>(levels), ']');
}

/// Dispatcher, worker and archive in this process, on a database and a virtual host of their own. The handler keeps what it is
/// given, by item, and fails while it is told to.
struct ExactnessTest : testing::Test {
  TestDatabase database;
  Database worker_vital{Secret(database.url()), one_connection()}, dispatcher_vital{Secret(database.url()), one_connection()};
  const TestVhost vhost;
  const SystemClock clock;
  SeededRandom random{1};
  Metrics metrics;
  const KeyRing keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  amqp::Publisher first{vhost.settings("first"), {}}, second{vhost.settings("second"), {}};
  SignerCheck signer{*database, keys, clock};
  Archive archive{*database, vhost.settings("archive"), keys, signer, clock, metrics};
  Dispatcher dispatcher{*database, dispatcher_vital, first, second, keys, clock, metrics, dispatching()};
  Worker worker{*database, worker_vital, vhost.settings("worker"), first, keys, clock, random, metrics, working()};
  std::mt19937 dice{20261126};
  std::atomic<bool> fails{false};
  std::mutex mutex;
  std::map<std::int64_t, std::vector<std::string>> given;    // by item; guarded by mutex
  std::map<std::string, std::vector<std::string>> given_to;  // by key, and by "job <name>"; guarded by mutex

  static Dispatcher::Settings dispatching() {
    Dispatcher::Settings settings;
    settings.scan_interval = 100ms;
    settings.leader_lease = 10s;
    settings.republish_after = 1h;
    settings.retention = {std::chrono::days(7), 72h, 720h};
    return settings;
  }
  Worker::Settings working() {
    Worker::Settings settings;
    settings.runs = 4;
    settings.grace = 5s;
    settings.max_tick_age = 24h;
    settings.queues = {"default"};
    settings.native["keeps"] = [this](const NativeItem& item) {
      {
        const std::scoped_lock lock(mutex);
        given[item.id].emplace_back(item.payload);
        given_to[std::string(item.key)].emplace_back(item.payload);
        given_to["job " + std::string(item.job)].emplace_back(item.payload);
      }
      HandlerResult result;
      result.item_class = fails ? ItemClass::error : ItemClass::done;
      result.reason = fails ? "told" : "";
      result.error = item.job;
      return result;
    };
    return settings;
  }

  static std::string job(const std::string& name, const std::string& more = "") {
    return "  " + name + ": {handler: {native: {name: keeps}}, max_attempts: 1, batch_size: 20" + more + "}\n";
  }
  void SetUp() override { database.apply(job("demo")); }
  void start() {
    first.start();
    second.start();
    archive.start();
    worker.start();
    dispatcher.start();
  }
  void TearDown() override {
    dispatcher.stop();
    worker.stop();
    archive.stop();
    second.stop();
    first.stop();
  }

  std::string canonical(const std::string& json) {
    return std::string(database->exec(std::string("SELECT $1::jsonb::text"), Params::of(json)).text(0, 0));
  }
  /// Random values, and those that lose most where something is not exact.
  std::vector<std::string> values() {
    std::vector<std::string> all{R"({"account": 1234567890123456789, "d": 0.1000000000000000055511151231257827})",
                                 R"([9223372036854775807, -9223372036854775808, 18446744073709551616, 1e400, -1E-400, 1.10, -0, 0.0])",
                                 R"({"a": 1, "b": {"x": 1, "x": 2}, "a": 3})",
                                 R"({"\u0061": "\ud83d\ude00 \u00e4 \u2028 \\u0000 \/", "": ""})",
                                 nested(kMaxJsonDepth),
                                 std::string(999, '7') + "1",
                                 "[1e995, -1e994, 5e-990, 1.5e-980]"};  // as long as a number may be, printed
    while (all.size() < kRandomValues) all.push_back(random_json(dice));
    return all;
  }
  bool reaches(const std::string& sql, std::int64_t count) {
    return eventually([&] { return database.number(sql) == count; }, 60);
  }
  std::vector<std::string> seen(const std::string& by) {
    const std::scoped_lock lock(mutex);
    return given_to[by];
  }
  void publish(amqp::Message message) { ASSERT_EQ(first.publish(std::move(message), 10s), amqp::Outcome::confirmed); }
};

TEST_F(ExactnessTest, Finding4_APayloadIsTheSameFromEnqueueToHandlerArchiveAndReplay) {
  start();
  fails = true;
  auto all = values();
  all.push_back(nested(1000));  // PostgreSQL's own bound is far beyond
  all.push_back("[1e100000]");
  std::map<std::int64_t, std::string> enqueued;
  const std::size_t half = all.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const auto row = database->exec(std::string("SELECT takt.enqueue('demo', $1::jsonb)"), Params::of(all[i]));
    enqueued[row.integer(0, 0)] = canonical(all[i]);
  }
  const auto rows = database->exec(std::string("SELECT item_id FROM takt.enqueue_many('demo', $1::jsonb[]) ORDER BY ordinal"),
                                   Params::of(std::vector<std::string>(all.begin() + static_cast<std::ptrdiff_t>(half), all.end())));
  for (std::size_t i = half; i < all.size(); ++i) enqueued[rows.integer(i - half, 0)] = canonical(all[i]);
  ASSERT_EQ(enqueued.size(), all.size());

  const auto count = static_cast<std::int64_t>(all.size());
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item'", count));
  std::vector<std::string> letters;
  const auto archived = database->exec(std::string("SELECT id, item_id, payload::text FROM takt.dead_letters"));
  for (std::size_t i = 0; i < archived.size(); ++i) {
    letters.emplace_back(archived.text(i, 0));
    EXPECT_EQ(archived.text(i, 2), enqueued[archived.integer(i, 1)]) << "in the archive";
  }
  fails = false;
  EXPECT_EQ(replay_letters(*database, letters, "ada").items, count);
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.finished_items WHERE state = 2", count));
  const std::scoped_lock lock(mutex);
  for (const auto& [item, payload] : enqueued) EXPECT_EQ(given[item], std::vector<std::string>(2, payload)) << "item " << item;
  const auto ended = database->exec(std::string("SELECT id, payload::text FROM takt.ended_items WHERE payload IS NOT NULL"));
  for (std::size_t i = 0; i < ended.size(); ++i) EXPECT_EQ(ended.text(i, 1), enqueued[ended.integer(i, 0)]) << "in the history";
}

TEST_F(ExactnessTest, Finding4_InlineItemsOfATickAreTheSameAlsoAfterItsJobWasUnknown) {
  start();
  const auto all = values();
  constexpr std::size_t kItemsATick = 20;
  int ticks = 0;
  std::vector<std::string> letters;
  for (std::size_t from = 0; from < all.size(); from += kItemsATick) {
    for (const char* name : {"demo", "later"}) {
      const bool as_json = ticks % 4 < 2;
      const std::string id = std::string("tick-") + std::to_string(ticks++);
      std::string body = R"({"id":")" + id + R"(","job":")" + name + R"(","items":[)";
      if (name == std::string("later")) letters.push_back("tick-" + id);
      v1::JobTick tick;
      tick.set_id(id);
      tick.set_job(name);
      for (std::size_t i = from; i < std::min(from + kItemsATick, all.size()); ++i) {
        const std::string key = name + std::to_string(i);
        body += (i > from ? "," : "") + std::string(R"({"key":")") + key + R"(","payload":)" + all[i] + "}";
        auto& item = *tick.add_items();
        item.set_key(key);
        item.set_payload_json(all[i]);
      }
      body += "]}";
      publish(signed_message(amqp::kTicksExchange, "default", id, as_json ? kJsonType : kProtobufType,
                             as_json ? body : tick.SerializeAsString(), keys.ticks(), clock.now()));
    }
  }
  const auto count = static_cast<std::int64_t>(all.size());
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.finished_items WHERE state = 2", count));
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.dead_letters WHERE kind = 'tick' AND reason = 'unknown_job'", ticks / 2));
  database.apply(job("demo") + job("later"));
  database->exec(std::string("SELECT takt.enqueue('later', key => 'known')"));
  ASSERT_TRUE(eventually([&] { return !seen("known").empty(); })) << "the worker knows the job";
  EXPECT_EQ(replay_letters(*database, letters, "ada").ticks, ticks / 2);
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.finished_items WHERE state = 2", 2 * count + 1));
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::vector<std::string> once{canonical(all[i])};
    EXPECT_EQ(seen("demo" + std::to_string(i)), once) << all[i];
    EXPECT_EQ(seen("later" + std::to_string(i)), once) << all[i];
  }
}

TEST_F(ExactnessTest, Finding4_ASchedulesPayloadIsTheSameInEachItemItBrings) {
  std::map<std::string, std::string> payloads;
  std::string jobs;
  for (const auto& value : values()) {
    if (payloads.size() == 40) break;
    // YAML has no pairs of surrogates, and a file a bound of its own, which the test of what is refused has.
    if (value.find("\\ud83d") != std::string::npos || depth_of(value) > 32) continue;
    const std::string name = "s" + std::to_string(payloads.size());
    payloads[name] = value == "null" ? "{}" : canonical(value);  // null in a file is what is not given
    jobs += job(name, ", schedules: [{name: s, cron: '* * * * * *', payload: " + value + "}]");
  }
  database.apply(jobs);
  start();
  for (const auto& [name, payload] : payloads) {
    ASSERT_TRUE(eventually([&, by = "job " + name] { return seen(by).size() >= 2; })) << name;
  }
  for (const auto& [name, payload] : payloads) {
    for (const auto& got : seen("job " + name)) EXPECT_EQ(got, payload) << name;
  }
}

/// Of a text that jsonb cannot hold there is no item, no slot and no letter, whichever way it comes.
TEST_F(ExactnessTest, NoWayTakesNulOrWhatIsBeyondABound) {
  start();
  const auto refusal = [&](const std::string& sql, const std::string& payload) -> std::string {
    try {
      database->exec(sql, Params::of(payload));
    } catch (const DatabaseError& error) {
      return error.sqlstate();
    }
    return "none";
  };
  for (const std::string nul : {R"("\u0000")", R"({"a\u0000": 1})", R"([{"a": ["b\u0000c"]}])"}) {
    EXPECT_EQ(refusal("SELECT takt.enqueue('demo', $1::jsonb)", nul), "22P05");
    EXPECT_EQ(refusal("SELECT * FROM takt.enqueue_many('demo', ARRAY['1', $1]::jsonb[])", nul), "22P05");
    EXPECT_THROW(database.apply(job("demo", ", schedules: [{name: s, cron: '0 0 1 1 *', payload: " + nul + "}]")), ConfigError);
  }
  EXPECT_THROW(database.apply(job("demo", ", schedules: [{name: s, cron: '0 0 1 1 *', payload: " + nested(34) + "}]")), ConfigError);
  EXPECT_THROW(database.apply(job("demo", ", schedules: [{name: s, cron: '0 0 1 1 *', payload: 1e1001}]")), ConfigError);
  for (const std::string number : {"1e1000", "1e996", "-1e999", "1.5e-1000", "12e999"}) {
    EXPECT_THROW(database.apply(job("demo", ", schedules: [{name: s, cron: '0 0 1 1 *', payload: " + number + "}]")), ConfigError)
        << number;
  }

  int ticks = 0;
  for (const std::string& payload :
       {std::string(R"("\u0000")"), std::string(R"({"a\u0000": 1})"), nested(kMaxJsonDepth + 1), std::string("1e1001"),
        std::string("1e1000"), std::string(1001, '7'), "[" + std::string(600, '1') + "e1000" + "]" + std::string(1, '\0')}) {
    for (const bool as_json : {true, false}) {
      const std::string id = "refused-" + std::to_string(ticks++);
      v1::JobTick tick;
      tick.set_id(id);
      tick.set_job("demo");
      tick.add_items()->set_payload_json("1");
      tick.add_items()->set_payload_json(payload);
      const std::string body = R"({"id":")" + id + R"(","job":"demo","items":[{"payload":1},{"payload":)" + payload + "}]}";
      publish(signed_message(amqp::kTicksExchange, "default", id, as_json ? kJsonType : kProtobufType,
                             as_json ? body : tick.SerializeAsString(), keys.ticks(), clock.now()));
    }
  }
  EXPECT_TRUE(eventually([&] {
    amqp::Channel channel(vhost.settings("look"));
    return channel.inspect_queue(amqp::kQuarantineQueue)->messages == static_cast<std::uint64_t>(ticks);
  }));
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.all_items"), 0);
}

/// No enqueue takes such an item now; a version with other limits may have.
TEST_F(ExactnessTest, C2_Finding8_ALetterTooLargeForAMessageIsCarriedToTheArchiveAndThroughAReplay) {
  start();
  fails = true;
  database->exec(
      std::string("INSERT INTO takt.items (job_id, key, priority, payload) SELECT id, 'k' || n, n - 2,"
                  " jsonb_build_array(repeat('x', CASE n WHEN 2 THEN 1 ELSE 1200000 END), 1234567890123456789, n)"
                  " FROM takt.jobs, generate_series(1, 3) n"));
  const std::string as_enqueued =
      "SELECT string_agg(id || ' ' || key || ' ' || priority || ' ' || md5(payload::text), ',' ORDER BY id) FROM ";
  const auto enqueued = database.text(as_enqueued + "(SELECT id, key, priority, payload FROM takt.items) i");
  database->exec(std::string("SELECT pg_notify('takt_due', 'demo')"));
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.dead_letters", 3)) << "two of them are larger than any message";
  EXPECT_EQ(database.text(as_enqueued + "(SELECT item_id AS id, key, priority, payload FROM takt.dead_letters) l"), enqueued);
  EXPECT_EQ(
      database.text("SELECT string_agg(DISTINCT concat_ws(' ', kind, job, reason, error, attempts, state), ',') FROM takt.dead_letters"),
      "item demo max_attempts told: demo 1 archived");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters WHERE attempt_errors->0->>'reason' = 'told'"), 3)
      << "with their attempts, whichever way they came";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letter_outbox"), 0);
  fails = false;
  const auto replayed = replay_letters(*database, open_letters(*database, {}, 10), "ada");
  EXPECT_EQ(replayed.items, 3);
  ASSERT_TRUE(reaches("SELECT count(*) FROM takt.finished_items WHERE state = 2", 3));
  for (int n = 1; n <= 3; ++n) {
    const auto payloads = seen("k" + std::to_string(n));
    ASSERT_EQ(payloads.size(), 2U);
    EXPECT_TRUE(payloads[0] == payloads[1] && payloads[0].size() == (n == 2 ? 29U : 1'200'028U)) << payloads[0].size();
  }
}

}  // namespace
}  // namespace takt
