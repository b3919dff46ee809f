#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "core/config/apply.h"
#include "core/tick/tick.h"
#include "dlq/operations.h"
#include "dlq/store.h"
#include "tests/support/fixture.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct DlqTest : testing::Test {
  TestDatabase database;

  void SetUp() override { database.apply(plain_job("demo", "dedupe_window: 1h")); }
  /// A dead item as settling leaves it, and its letter.
  void dead(std::int64_t id, const std::string& key = "", const std::string& reason = "max_attempts") {
    const std::string quoted_key = key.empty() ? "NULL" : "'" + key + "'";
    database->exec(
        "INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_at, enqueued_at, key, "
        "payload) "
        "VALUES (" +
        std::to_string(id) + ", now(), 1, 3, 'error', 0, 3, 0, now(), now(), " + quoted_key + ", '{\"customer\": \"Ada\"}')");
    database->exec("INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error) SELECT " +
                   std::to_string(id) + ", now(), 1, 0, n, n, 'error', 'http_500', 'attempt ' || n FROM generate_series(1, 3) n");
    Letter letter{"item-" + std::to_string(id) + "-0",
                  "item",
                  "demo",
                  reason,
                  "http_500: no",
                  id,
                  key.empty() ? std::nullopt : std::optional(key),
                  0,
                  R"({"customer": "Ada"})",
                  3,
                  {},
                  {},
                  {},
                  SystemClock().now()};
    EXPECT_EQ(store_letters(*database, {letter}), 1);
  }
  /// The letter of a tick for the job demo that died before the job was known; returns its id.
  std::string dead_tick(const std::string& id, const std::string& more = "") {
    const std::string payload = R"({"id": ")" + id + R"(", "job": "demo")" + more + "}";
    EXPECT_EQ(store_letters(*database,
                            {{"tick-" + id, "tick", "demo", "unknown_job", "", {}, {}, 0, payload, 0, {}, {}, {}, SystemClock().now()}}),
              1);
    return "tick-" + id;
  }
  std::string state(const std::string& letter) {
    return std::string(database->exec(std::string("SELECT state FROM takt.dead_letters WHERE id = $1"), Params::of(letter)).text(0, 0));
  }
};

TEST_F(DlqTest, StoresEachLetterOnceWithEveryAttemptsError) {
  dead(900);
  Letter again{"item-900-0", "item", "demo", "other", "", 900, {}, 0, "{}", 1, {}, {}, {}, SystemClock().now()};
  EXPECT_EQ(store_letters(*database, {again, again}), 0);
  EXPECT_EQ(database.text("SELECT reason FROM takt.dead_letters"), "max_attempts");
  EXPECT_EQ(database.text("SELECT attempt_errors->2->>'error' FROM takt.dead_letters"), "attempt 3");
}

TEST_F(DlqTest, KeepsBytesOfAnyKind) {
  std::string body;
  for (int i = 0; i < 256; ++i) body += static_cast<char>(i);
  Letter letter{"message-1",        "message", "", "rejected", "", {}, {}, 0, {}, 0, body, "{}", R"([{"reason": "rejected"}])",
                SystemClock().now()};
  EXPECT_EQ(store_letters(*database, {letter}), 1);
  EXPECT_EQ(database.number("SELECT octet_length(body) FROM takt.dead_letters WHERE get_byte(body, 255) = 255"), 256);
  const auto parts = letter_parts(*database, "message-1");
  std::map<std::string, std::string> shown;
  for (const auto& part : parts) shown.emplace(part.name, part.value.value_or("null"));
  EXPECT_EQ(shown["reason"], "\"rejected\"");
  EXPECT_EQ(shown["bytes"], "256");
  EXPECT_EQ(shown["body_base64"].size(), 344 + 2U) << "one line";
  EXPECT_TRUE(shown["body_base64"].ends_with("9vf4+fr7/P3+/w==\""));
}

TEST_F(DlqTest, ReplaysAnItemOnceWithFreshAttemptsAndItsHistory) {
  dead(900, "k");
  const auto first = replay_letters(*database, {"item-900-0"}, "ada");
  EXPECT_EQ(first.items, 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items WHERE id = 900 AND attempt = 0 AND replay = 1 AND state = 0 AND key = 'k'"),
            1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.finished_items"), 0) << "it is in one state";
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.failed_attempts WHERE item_id = 900"), 3);
  EXPECT_EQ(database.text("SELECT state || ' ' || changed_by FROM takt.dead_letters"), "replayed ada");
  const auto second = replay_letters(*database, {"item-900-0"}, "bob");
  EXPECT_EQ(second.items, 0);
  EXPECT_EQ(second.before, 1);
  EXPECT_EQ(second.refused, 0);
  EXPECT_EQ(database.text("SELECT changed_by FROM takt.dead_letters"), "ada");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.audit WHERE action = 'dlq replay'"), 1);
}

TEST_F(DlqTest, ReplaysEachOnceWhenTwoOperatorsDoTheSame) {
  std::vector<std::string> ids;
  for (int i = 900; i < 1000; ++i) {
    dead(i);
    ids.push_back("item-" + std::to_string(i) + "-0");
  }
  std::atomic<int> replayed{0};
  std::vector<std::thread> operators;
  for (int i = 0; i < 3; ++i)
    operators.emplace_back([&, i] { replayed += replay_letters(*database, ids, "operator " + std::to_string(i)).items; });
  for (auto& thread : operators) thread.join();
  EXPECT_EQ(replayed.load(), 100);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 100);
}

TEST_F(DlqTest, DoesNotReplayOverALiveItemWithTheSameKey) {
  dead(900, "k");
  const auto live = database.number("SELECT takt.enqueue('demo', key => 'k')");
  EXPECT_EQ(replay_letters(*database, {"item-900-0"}, "ada").refused, 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.items"), 1);
  EXPECT_EQ(database.number("SELECT id FROM takt.items"), live);
  EXPECT_EQ(database.text("SELECT state FROM takt.dead_letters"), "archived");
}

TEST_F(DlqTest, ReplaysATickOnceItsJobIsKnown) {
  Letter letter{
      "tick-x", "tick", "later", "unknown_job",      "", {}, {}, 0, R"({"id": "x", "job": "later", "items": [{"payload": {"n": 1}}]})", 0,
      {},       {},     {},      SystemClock().now()};
  store_letters(*database, {letter});
  EXPECT_EQ(replay_letters(*database, {"tick-x"}, "ada").refused, 1);
  database.apply(plain_job("demo") + plain_job("later"));
  EXPECT_EQ(replay_letters(*database, {"tick-x"}, "ada").ticks, 1);
  EXPECT_EQ(database.text("SELECT id || ' ' || source || ' ' || (items->0->'payload'->>'n') FROM takt.ticks WHERE published_at IS NULL"),
            "replay:tick-x replay 1");
}

TEST_F(DlqTest, Finding21_ReplaysATickAsItWasSent) {
  database.apply(plain_job("demo", "item_per_tick: true"));
  const auto tick = [&](const std::string& id, const std::string& more) {
    store_letters(*database, {{"tick-" + id,
                               "tick",
                               "demo",
                               "unknown_job",
                               "",
                               {},
                               {},
                               0,
                               R"({"id": ")" + id + R"(", "job": "demo")" + more + "}",
                               0,
                               {},
                               {},
                               {},
                               SystemClock().now()}});
    EXPECT_EQ(replay_letters(*database, {"tick-" + id}, "ada").ticks, 1);
    return database.text(
        "SELECT coalesce(items::text, '-') || ' ' || coalesce(batch_size, 0) || ' ' || coalesce(dry_run, false) FROM takt.ticks "
        "WHERE id = 'replay:tick-" +
        id + "'");
  };
  EXPECT_EQ(tick("x", ""), R"([{"key": "x", "payload": {}}] 0 false)") << "the item that it would have brought, under the same key";
  EXPECT_EQ(tick("y", R"(, "dryRun": true, "batchSize": 3)"), "- 3 true");
  EXPECT_EQ(tick("z", R"(, "batchSize": 4294967295, "items": [{"payload": 1234567890123456789}])"),
            R"([{"payload": 1234567890123456789}] 2147483647 false)");
  EXPECT_EQ(tick("due:w", ""), "- 0 false");
}

TEST_F(DlqTest, Finding21_OnlyASlotsIdIsTakenForASlots) {
  database.apply(plain_job("demo", "item_per_tick: true"));
  const auto item_of = [&](const std::string& id, const std::string& more = "") {
    EXPECT_EQ(replay_letters(*database, {dead_tick(id, more)}, "ada").ticks, 1);
    return database.text("SELECT coalesce(items->0->>'key', '-') FROM takt.ticks WHERE id = 'replay:tick-" + id + "'");
  };
  EXPECT_EQ(item_of("orders/42@eu"), "orders/42@eu");
  EXPECT_EQ(item_of("demo/42@eu", R"(, "dueAt": "2026-11-21T10:00:00Z")"), "demo/42@eu");
  EXPECT_EQ(item_of("other/daily@2026-11-21T10:00:00Z", R"(, "dueAt": "2026-11-21T10:00:00Z")"), "other/daily@2026-11-21T10:00:00Z");
  EXPECT_EQ(item_of("demo/daily@2026-11-21T10:00:00Z"), "demo/daily@2026-11-21T10:00:00Z") << "it does not say that it was due then";
  EXPECT_EQ(item_of("demo/daily@2026-11-22T10:00:00Z", R"(, "dueAt": "2026-11-22T10:00:00Z")"), "-");
  EXPECT_EQ(item_of("demo/once@2026-11-22T10:00:00.5Z", R"(, "dueAt": "2026-11-22T10:00:00.500Z")"), "-");
}

TEST_F(DlqTest, Finding21_LettersWithLongIdsGiveATickEach) {
  const std::string same(250, 'x');
  const std::string item = R"(, "items": [{"payload": 1}])";
  const auto first = dead_tick(same + "a", item);
  const auto second = dead_tick(same + "b", item);
  EXPECT_EQ(replay_letters(*database, {first, second}, "ada").ticks, 2);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE source = 'replay' AND items->0->>'payload' = '1'"), 2);
  EXPECT_EQ(state(first) + " " + state(second), "replayed replayed");
  const auto longest = dead_tick(std::string(256 - 12, 'y'));
  EXPECT_EQ(replay_letters(*database, {longest}, "ada").ticks, 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks WHERE id = 'replay:" + longest + "'"), 1) << "what fits stays readable";
}

TEST_F(DlqTest, Finding21_ALetterWhoseTickIsNotStoredStaysOpen) {
  const auto letter = dead_tick("t");
  const auto other = dead_tick("u");
  database->exec(std::string("INSERT INTO takt.ticks (id, job_id, source, due_at) VALUES ('replay:tick-t', 1, 'replay', now())"));
  const auto replayed = replay_letters(*database, {letter, other}, "ada");
  EXPECT_EQ(replayed.ticks, 1) << "that of the other";
  EXPECT_EQ(replayed.refused, 1);
  EXPECT_EQ(state(letter) + " " + state(other), "archived replayed");
  EXPECT_EQ(why_not_replayed(*database, {letter, other}, false),
            std::vector<std::string>{"tick-t: another tick has the id that its replay would have"});
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.audit WHERE action = 'dlq replay'"), 1);

  // Pruned, and brought once more: its own tick is there.
  database->exec(std::string("DELETE FROM takt.dead_letters WHERE id = 'tick-u'"));
  dead_tick("u");
  EXPECT_EQ(replay_letters(*database, {other}, "bob").ticks, 1);
  EXPECT_EQ(state(other), "replayed");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.ticks"), 2);
}

TEST_F(DlqTest, Finding21_AReplayedTicksIdHasNoMoreBytesThanAWorkerTakes) {
  std::string id;
  for (int i = 0; i < 125; ++i) id += "\u00e9";
  ASSERT_EQ(id.size(), 250U);
  EXPECT_EQ(replay_letters(*database, {dead_tick(id), dead_tick(id + "\u00e9")}, "ada").ticks, 2);
  const auto ids = database->exec(std::string("SELECT id FROM takt.ticks"));
  ASSERT_EQ(ids.size(), 2U);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    v1::JobTick tick;
    tick.set_id(std::string(ids.text(i, 0)));
    tick.set_job("demo");
    EXPECT_TRUE(within_limits(tick)) << tick.id();
  }
}

TEST_F(DlqTest, Finding40_AMendedLetterIsReplayedAsItIsNow) {
  dead(950);
  const auto letter = letter_to_mend(*database, "item-950-0").value();
  EXPECT_EQ(letter.pretty, "{\n    \"customer\": \"Ada\"\n}");
  EXPECT_EQ(mend_letter(*database, letter, R"({"customer": "Bea", "n": 1234567890123456789.10})", "ann"), Mended::edited);
  EXPECT_EQ(mend_letter(*database, letter, R"({"customer": "Bea", "n": 1234567890123456789.10})", "ann"), Mended::edited)
      << "again, since the answer was lost";
  EXPECT_EQ(mend_letter(*database, letter, R"({"customer": "Cid"})", "bob"), Mended::changed) << "he saw another payload";
  const auto now = letter_to_mend(*database, "item-950-0").value();
  EXPECT_EQ(mend_letter(*database, now, R"({ "n":1234567890123456789.10, "customer":"Bea" })", "bob"), Mended::same);
  EXPECT_EQ(database.text("SELECT edited_by FROM takt.dead_letters WHERE edited_at IS NOT NULL"), "ann");

  EXPECT_EQ(
      database.text("SELECT string_agg(concat_ws(' ', who, action, subject, detail->>'bytes'), ', ') FROM takt.audit WHERE action LIKE "
                    "'dlq%'"),
      "ann dlq edit item-950-0 [19, 48]");
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.audit WHERE to_jsonb(audit)::text ~ 'Ada|Bea'"), 0) << "no payload in it";
  EXPECT_EQ(database.number("SELECT length(detail->'sha256'->>1) FROM takt.audit WHERE action = 'dlq edit'"), 64);

  EXPECT_EQ(replay_letters(*database, {"item-950-0"}, "ann").items, 1);
  EXPECT_EQ(database.text("SELECT payload::text FROM takt.items WHERE id = 950"), R"({"n": 1234567890123456789.10, "customer": "Bea"})");
  EXPECT_EQ(mend_letter(*database, now, "{}", "bob"), Mended::changed) << "it was replayed";
  EXPECT_FALSE(letter_to_mend(*database, "item-951-0"));
}

TEST_F(DlqTest, FiltersByJobReasonTimeAndText) {
  dead(900);
  dead(901, "", "max_age");
  LetterFilter filter;
  EXPECT_EQ(list_letters(*database, filter, 10).size(), 2U);
  filter.reason = "max_age";
  EXPECT_EQ(open_letters(*database, filter, 10), std::vector<std::string>{"item-901-0"});
  filter.reason.reset();
  filter.text = "ADA";
  EXPECT_EQ(count_open_letters(*database, filter), 2);
  filter.text = "100%_'; DROP";
  EXPECT_EQ(count_open_letters(*database, filter), 0);
  filter = {};
  filter.until = SystemClock().now() - 1h;
  EXPECT_EQ(count_open_letters(*database, filter), 0);
  filter = {};
  filter.job = "other";
  EXPECT_EQ(count_open_letters(*database, filter), 0);
}

TEST_F(DlqTest, DiscardsAndPrunes) {
  dead(900);
  dead(901);
  EXPECT_EQ(discard_letters(*database, {"item-900-0", "item-nobody"}, "ada"), 1);
  EXPECT_EQ(replay_letters(*database, {"item-900-0"}, "ada").refused, 1);
  database->exec(std::string("UPDATE takt.dead_letters SET died_at = now() - interval '31 days' WHERE id = 'item-901-0'"));
  EXPECT_EQ(count_prunable(*database, 720h), 1);
  EXPECT_EQ(prune_letters(*database, 720h, 10), 1);
  EXPECT_EQ(database.number("SELECT count(*) FROM takt.dead_letters"), 1);
}

}  // namespace
}  // namespace takt
