// Dispatcher, workers, archive, callers and operator by turns that a seed decides, on the real store, with a broker in memory
// that drops, repeats and reorders, workers that crash, freeze and lose answers, and callers whose transactions stay open over
// many turns. One thread: the same seed does the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "core/tick/tick_message.h"
#include "dispatcher/due_scan.h"
#include "dispatcher/lease_rescue.h"
#include "dispatcher/suspects.h"
#include "dlq/operations.h"
#include "dlq/store.h"
#include "tests/support/clock.h"
#include "tests/support/fixture.h"
#include "tests/support/random_json.h"
#include "worker/claim.h"
#include "worker/settle.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr int kWorkers = 3;
constexpr int kCallers = 2;
constexpr int kTurns = 150;
constexpr auto kHeld = 2s;  ///< a settling that takes as long waited for a caller

std::string definitions() {
  return plain_job("demo", "batch_size: 5, max_attempts: 3, dedupe_window: 1h") +
         plain_job("solo", "batch_size: 3, max_attempts: 2, concurrency: 1");
}

class Simulation {
 public:
  Simulation(TestDatabase& database, Leadership& leadership, unsigned seed) : database_(database), term_(leadership.term()), dice_(seed) {
    for (auto& caller : callers_) caller.connection = database_->dedicated();
    database_->exec(
        std::string("TRUNCATE takt.items, takt.ticks, takt.runs, takt.ended_items, takt.failed_attempts, takt.item_keys, takt.job_locks,"
                    " takt.dead_letter_outbox, takt.dead_letters"));
    for (const char* name : {"demo", "solo"}) jobs_.push_back(database_.job(name));
  }

  /// How often chains ended their runs together.
  [[nodiscard]] int together() const { return together_; }

  void run() {
    for (int turn = 0; turn < kTurns; ++turn) {
      take_turn();
      if (turn % 10 == 9) check();
    }
    drain();
    check();
    EXPECT_EQ(number("SELECT count(*) FROM takt.all_items WHERE state NOT IN ('done', 'dead', 'cancelled')"), 0)
        << database_.text(
               "SELECT string_agg(to_jsonb(i)::text, E'\\n') FROM takt.all_items i WHERE state NOT IN ('done', 'dead', 'cancelled')")
        << "\n"
        << database_.text("SELECT coalesce(string_agg(to_jsonb(t)::text, E'\\n'), '') FROM takt.ticks t WHERE finished_at IS NULL") << "\n"
        << database_.text("SELECT coalesce(string_agg(to_jsonb(l)::text, E'\\n'), '') FROM takt.job_locks l");
    EXPECT_EQ(number("SELECT count(*) FROM takt.job_locks"), 0);
    EXPECT_EQ(number("SELECT count(*) FROM takt.ticks WHERE lease_until IS NOT NULL"), 0);
    EXPECT_EQ(number("SELECT count(*) FROM takt.ended_items i WHERE i.state = 3 AND NOT EXISTS"
                     " (SELECT 1 FROM takt.dead_letters d WHERE d.item_id = i.id AND d.state = 'archived')"),
              0)
        << "a dead item without a letter";
  }

 private:
  struct Message {
    std::string tick;
    std::size_t job;
  };
  struct Worker {
    std::optional<RunRecord> held;
    bool lost = false;  ///< its lease is over, which it does not know
    std::size_t job = 0;
  };

  int roll(int sides) { return std::uniform_int_distribution<int>(0, sides - 1)(dice_); }
  bool chance(int percent) { return roll(100) < percent; }
  std::int64_t number(const std::string& sql) { return database_.number(sql); }

  void take_turn() {
    if (paused_for_ > 0 && --paused_for_ == 0) resume();
    auto& worker = workers_[static_cast<std::size_t>(roll(kWorkers))];
    switch (roll(17)) {
      case 0:
      case 1: return enqueue();
      case 2:
      case 3: return scan();
      case 4:
      case 5:
      case 6: return deliver(worker);
      case 7:
      case 8:
      case 9: return finish(worker);
      case 10: return chance(50) ? crash(worker) : freeze(worker);
      case 11: return rescue();
      case 12: return archive();
      case 13: return finish_together();
      case 14:
      case 15: return call(callers_[static_cast<std::size_t>(roll(kCallers))]);
      default: return interfere();
    }
  }

  /// An application, in a transaction of its own.
  struct Caller {
    std::unique_ptr<DatabaseConnection> connection;
    bool open = false;
    std::map<std::int64_t, std::string> stored;  ///< in the open transaction: item and payload
    std::set<std::string> owned;                 ///< keys that nobody else can ask for before it ends
  };

  void enqueue() {
    const int count = 2 + roll(8);
    database_->with_connection([&](DatabaseConnection& connection) {
      for (int i = 0; i < count; ++i) {
        std::map<std::int64_t, std::string> stored;
        store(connection.session(), stored, nullptr);
        payloads_.merge(stored);
      }
    });
    if (chance(20)) refuse();
  }

  /// One takt.enqueue with a random payload, often a key and a time at an edge. An item whose key was free before the call is
  /// never its answer: a caller's transaction may be much older than that item's end.
  void store(Session& session, std::map<std::int64_t, std::string>& stored, Caller* caller) {
    static constexpr const char* kTimes[] = {"NULL",
                                             "NULL",
                                             "NULL",
                                             "NULL",
                                             "'-infinity'",
                                             "'0001-01-01 00:00:00+00'",
                                             "'1969-12-31 23:59:59+00'",
                                             "now()",
                                             "now() + interval '1 us'",
                                             "'9999-12-31 00:00:00+00'"};
    const std::string job = jobs_[static_cast<std::size_t>(roll(2))].definition.name;
    std::optional<std::string> key;
    if (chance(caller != nullptr ? 70 : 20)) key = chance(90) ? "k" + std::to_string(roll(5)) : "";
    if (key && !key->empty() && owned_by_another(job + *key, caller)) return;
    const std::string given = random_json(dice_);
    std::int64_t ended = 0;
    if (key) {
      const auto rows = session.exec(std::string("SELECT k.item_id FROM takt.item_keys k JOIN takt.jobs j ON j.id = k.job_id"
                                                 " WHERE j.name = $1 AND k.key = $2 AND k.expires_at <= clock_timestamp()"),
                                     Params::of(job, key));
      if (!rows.empty()) ended = rows.integer(0, 0);
    }
    const auto rows = session.exec(
        std::string("SELECT takt.enqueue($1, $2::jsonb, $3, ") + kTimes[roll(std::size(kTimes))] + ", $4::integer), ($2::jsonb)::text",
        Params::of(job, given, key, roll(3)));
    const auto id = rows.integer(0, 0);
    EXPECT_NE(id, ended) << "an enqueue was swallowed: key " << key.value_or("") << " of " << job << " was free";
    const bool held = payloads_.contains(id) || stored.contains(id);
    if (!held) stored.emplace(id, rows.text(0, 1));
    if (!held && caller != nullptr && key) caller->owned.insert(job + *key);
  }
  bool owned_by_another(const std::string& key, const Caller* caller) {
    return std::any_of(callers_.begin(), callers_.end(),
                       [&](const Caller& other) { return &other != caller && other.owned.contains(key); });
  }

  /// What is refused stores nothing, whatever else its statement would have stored.
  void refuse() {
    static constexpr const char* kCalls[] = {
        "SELECT takt.enqueue('demo', run_at => 'infinity')",
        "SELECT takt.enqueue('demo', run_at => '290000-01-01')",
        "SELECT takt.enqueue('demo', key => repeat('k', 513))",
        "SELECT takt.enqueue('demo', priority => 101)",
        "SELECT takt.enqueue('demo', priority => -2147483648)",
        "SELECT takt.enqueue('nobody')",
        "SELECT takt.enqueue('demo', to_jsonb(repeat('x', 524288)))",
        "SELECT takt.enqueue('demo', (SELECT jsonb_agg(1e131071) FROM generate_series(1, 8)))",
        "SELECT * FROM takt.enqueue_many('demo', ARRAY['1', '2']::jsonb[], ARRAY['k0'])",
        "SELECT * FROM takt.enqueue_many('demo', ARRAY['1', NULL]::jsonb[])",
        "SELECT * FROM takt.enqueue_many('demo', '{}'::jsonb[])",
        "SELECT * FROM takt.enqueue_many('demo', ARRAY['1', '2']::jsonb[], NULL, ARRAY[now(), 'infinity'])",
        "SELECT * FROM takt.enqueue_many('demo', array_fill('1'::jsonb, ARRAY[10001]))"};
    const char* call = kCalls[roll(std::size(kCalls))];
    EXPECT_THROW(database_->exec(std::string(call)), DatabaseError) << call;
  }

  /// A transaction is begun, goes on, or ends; turns of others lie between.
  void call(Caller& caller) {
    auto& session = caller.connection->session();
    if (!caller.open) {
      session.exec(std::string("BEGIN"), {});
      session.exec(std::string("SELECT 1"), {});
      caller.open = true;
    } else if (chance(60)) {
      store(session, caller.stored, &caller);
    } else {
      end(caller, chance(70));
    }
  }
  void end(Caller& caller, bool commit) {
    if (!std::exchange(caller.open, false)) return;
    caller.connection->session().exec(std::string(commit ? "COMMIT" : "ROLLBACK"), {});
    if (commit) payloads_.merge(caller.stored);
    caller.stored.clear();
    caller.owned.clear();
  }

  /// To the broker, which may lose it or have it twice.
  void publish(const Message& message) {
    if (chance(10)) return;
    queue_.push_back(message);
    if (chance(10)) queue_.push_back(message);
  }

  /// It remembers nothing of the wake ticks that the one before has sent.
  std::unique_ptr<DueScan> new_leader() { return std::make_unique<DueScan>(*database_, clock_, 3); }
  void scan() {
    for (const auto& tick : scan_->run_once(term_).ticks) publish({tick.id, tick.job == "demo" ? 0U : 1U});
  }

  void deliver(Worker& worker) {
    if (worker.held || queue_.empty()) return;
    const auto at = static_cast<std::size_t>(roll(static_cast<int>(queue_.size())));
    const Message message = queue_[at];
    if (!chance(10)) queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(at));  // else it comes again
    const auto& job = jobs_[message.job];
    const ClaimRequest request{job, message.tick, clock_.now(), tick_source(message.tick), ++last_run_, "w", job.definition.batch_size};
    auto claim = claim_batch(*database_, request);
    if (claim.outcome == ClaimOutcome::duplicate) return;
    if (chance(20)) {  // the answer was lost: what was committed is found, and nothing more is claimed
      const auto again = claim_batch(*database_, request);
      ASSERT_EQ(again.items.size(), claim.items.size());
    }
    hold(worker, message.job, message.tick, request.run_id, std::move(claim));
  }

  void hold(Worker& worker, std::size_t job, const std::string& tick, std::int64_t run_id, Claim&& claim) {
    RunRecord run;
    run.run_id = run_id;
    run.job = &jobs_[job];
    run.tick_id = tick;
    run.source = claim.source;
    run.worker = "w";
    run.status = claim.outcome == ClaimOutcome::locked ? RunStatus::locked : RunStatus::completed;
    run.scanned = static_cast<int>(claim.items.size());
    run.drains = run.status == RunStatus::completed;
    run.items = std::move(claim.items);
    for (const auto& item : run.items) {
      EXPECT_EQ(item.payload, payloads_.at(item.id)) << "item " << item.id << " is not what was enqueued";
      const auto call = std::make_pair(item.id, lives_[item.id] * 1000 + item.attempt);
      if (!unspent_.contains(call)) {
        EXPECT_TRUE(calls_.insert(call).second) << "item " << item.id << " is handled twice under attempt " << item.attempt;
      }
      unspent_.erase(call);
    }
    worker.held = std::move(run);
    worker.lost = false;
    worker.job = job;
  }

  void judge(RunRecord& run, bool all_done) {
    static constexpr ItemClass kClasses[] = {ItemClass::done,        ItemClass::done,    ItemClass::done,       ItemClass::noop,
                                             ItemClass::skipped,     ItemClass::blocked, ItemClass::error,      ItemClass::error,
                                             ItemClass::handed_back, ItemClass::fatal,   ItemClass::interrupted};
    run.results.assign(run.items.size(), HandlerResult{});
    run.settlements.clear();
    const bool throws = !all_done && chance(15);  // then every item is an error
    for (std::size_t i = 0; i < run.items.size(); ++i) {
      run.results[i].item_class = all_done ? ItemClass::done
                                  : throws ? ItemClass::error
                                           : kClasses[static_cast<std::size_t>(roll(std::size(kClasses)))];
      const bool well = run.results[i].item_class == ItemClass::done || run.results[i].item_class == ItemClass::noop;
      if (!well) run.results[i].reason = "simulated";
      run.settlements.push_back(settle_item(run.items[i], run.results[i], run.job->definition, 0ms, 0.5));
    }
  }

  /// No transaction of a caller keeps a settling waiting.
  template <typename Settling>
  static auto unheld(Settling settling) {
    struct Watch {
      std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
      ~Watch() { EXPECT_LT(std::chrono::steady_clock::now() - began, kHeld) << "a settling was held"; }
    } watch;
    return settling();
  }

  void finish(Worker& worker, bool all_done = false) {
    if (!worker.held) return;
    RunRecord run = std::move(*worker.held);
    worker.held.reset();
    judge(run, all_done || chance(40));
    spare_lost_attempts(*database_, run, 0.5);
    Claim next;
    const bool goes_on = run.drains && chance(50);
    const ClaimRequest request{*run.job, next_tick_id(run), clock_.now(), "more", ++last_run_, "w", run.job->definition.batch_size};
    const auto settled = unheld([&] { return goes_on ? settle_and_claim(*database_, run, request, next) : settle_run(*database_, run); });
    conclude(worker, run, settled);
    if (!goes_on && chance(20)) {
      EXPECT_EQ(settle_run(*database_, run).items, 0) << "settled again after its answer was lost";
    }
    if (goes_on && next.outcome != ClaimOutcome::duplicate)
      hold(worker, worker.job, request.tick_id, request.run_id, std::move(next));
    else if (settled.continues)
      publish({continuation_id(run.run_id), worker.job});
  }

  /// The runs of all chains of one job end done, and go on in one statement.
  void finish_together() {
    std::vector<Worker*> group;
    for (auto& worker : workers_) {
      if (worker.held && worker.held->source == "more" && worker.held->drains && worker.job == 0) group.push_back(&worker);
    }
    if (group.size() < 2 && chance(70)) return;  // mostly more than one
    if (group.empty()) return;
    std::vector<RunRecord> runs;
    std::vector<ClaimRequest> requests;
    for (auto* worker : group) {
      runs.push_back(*std::exchange(worker->held, std::nullopt));
      judge(runs.back(), true);
      const auto& job = *runs.back().job;
      requests.push_back(
          {job, next_tick_id(runs.back()), clock_.now(), "more", ++last_run_, "w", job.definition.batch_size, false, chance(80)});
    }
    std::vector<Claim> claims(group.size());
    std::vector<Continuation> chains;
    std::vector<Continuation*> together;
    for (std::size_t i = 0; i < group.size(); ++i) {
      ASSERT_TRUE(goes_on_in_place(runs[i], requests[i]));
      chains.push_back({runs[i], requests[i], claims[i], {}});
    }
    for (auto& chain : chains) together.push_back(&chain);
    unheld([&] { settle_and_claim(*database_, together); });
    std::vector<Settled> settled;
    for (const auto& chain : chains) settled.push_back(chain.settled);
    if (chance(20)) {  // the answer was lost
      const auto held = claims;
      settle_and_claim(*database_, together);
      for (std::size_t i = 0; i < group.size(); ++i) {
        EXPECT_EQ(chains[i].settled.continues, settled[i].continues);
        EXPECT_EQ(claims[i].items.size(), held[i].items.size()) << "what was committed is found, and nothing more is claimed";
      }
    }
    for (std::size_t i = 0; i < group.size(); ++i) {
      conclude(*group[i], runs[i], settled[i]);
      if (settled[i].continues) hold(*group[i], 0, requests[i].tick_id, requests[i].run_id, std::move(claims[i]));
    }
    if (group.size() > 1) ++together_;
  }

  void conclude(const Worker& worker, const RunRecord& run, const Settled& settled) {
    if (worker.lost) {
      // Rescued meanwhile or not: if it was, nothing of it may be written.
      if (number("SELECT count(*) FROM takt.runs WHERE id = " + std::to_string(run.run_id) + " AND status = 'failed'") > 0) {
        EXPECT_EQ(settled.items, 0) << "a run that lost its lease was settled";
      }
    } else {
      EXPECT_EQ(settled.items, static_cast<int>(run.items.size()));
    }
    if (settled.items > 0) note(run);
  }

  void note(const RunRecord& run) {
    for (std::size_t i = 0; i < run.items.size(); ++i) {
      const auto& settlement = run.settlements[i];
      const auto id = run.items[i].id;
      if (settlement.state == ItemState::done) {
        EXPECT_TRUE(done_.insert({id, lives_[id]}).second) << "item " << id << " was done twice";
      }
      if (!settlement.spent) unspent_.insert({id, lives_[id] * 1000 + run.items[i].attempt});
      if (run.results[i].item_class != ItemClass::error && run.results[i].item_class != ItemClass::interrupted) continue;
      const int own = settlement.spent ? ++own_attempts_[{id, lives_[id]}] : 0;
      if (settlement.reason == "max_attempts") {
        EXPECT_GE(own, run.job->definition.max_attempts) << "item " << id << " died of attempts that were lost with their worker";
      }
    }
  }

  void end_lease(const RunRecord& run) {
    database_->exec("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE run_id = " + std::to_string(run.run_id) +
                    " AND finished_at IS NULL");
    database_->exec("UPDATE takt.job_locks SET until = now() - interval '1 s' WHERE run_id = " + std::to_string(run.run_id));
  }
  void crash(Worker& worker) {
    if (!worker.held) return;
    end_lease(*worker.held);
    worker.held.reset();
  }
  void freeze(Worker& worker) {
    if (!worker.held) return;
    end_lease(*worker.held);
    worker.lost = true;
  }

  void rescue() {
    rescue_expired_leases(*database_, term_, 10);
    wake_next_suspect(*database_, term_);  // its tick is found among the unpublished ones
    // Ticks that are to be published again.
    const auto rows =
        database_->exec(std::string("SELECT t.id, j.name FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id"
                                    " WHERE t.published_at IS NULL AND t.finished_at IS NULL ORDER BY t.id"));
    for (std::size_t i = 0; i < rows.size(); ++i) publish({std::string(rows.text(i, 0)), rows.text(i, 1) == "demo" ? 0U : 1U});
  }

  /// The outbox through the exchange into the archive; letters may arrive twice.
  void archive() {
    const auto rows = database_->exec(
        std::string("SELECT id, (body - 'payload')::text, (body -> 'payload')::text FROM takt.dead_letter_outbox ORDER BY id"));
    std::vector<Letter> letters;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto message = dead_letter_message(std::string(rows.text(i, 0)), kProtobufType,
                                               dead_letter_body(rows.text(i, 1), rows.text(i, 2)).value(), keys_, clock_.now());
      amqp::Delivery delivery;
      delivery.content_type = message.content_type;
      delivery.body = message.body;
      delivery.body_size = message.body.size();
      for (const auto& [name, value] : message.headers) delivery.headers[name] = value;
      letters.push_back(read_letter(delivery, keys_, clock_.now()));
      EXPECT_EQ(letters.back().kind, "item");
    }
    if (letters.empty()) return;
    EXPECT_EQ(store_letters(*database_, letters), static_cast<int>(letters.size()));
    if (chance(30)) {
      EXPECT_EQ(store_letters(*database_, letters), 0) << "stored twice";
    }
    database_->exec(std::string("DELETE FROM takt.dead_letter_outbox"));
  }

  /// Time passes, or an operator does something.
  void interfere() {
    switch (roll(8)) {
      case 0:
        clock_.advance(6s);
        database_->exec(std::string("UPDATE takt.items SET run_at = now() - interval '1 s' WHERE state = 0"));
        break;
      case 1: retry_blocked(); break;
      case 2: scan_ = new_leader(); break;
      case 3: database_.apply(definitions() + (chance(50) ? plain_job("other") : "")); break;
      case 4: pause(chance(50) ? "demo" : "solo"); break;
      case 5: rehearse(); break;
      default: replay(); break;
    }
  }
  /// For some turns.
  void pause(const std::string& job) {
    resume();
    database_->exec("UPDATE takt.jobs SET paused = true WHERE name = $1", Params::of(job));
    paused_for_ = 10;
  }
  void resume() { database_->exec(std::string("UPDATE takt.jobs SET paused = false WHERE paused")); }
  /// A dry run: a run is recorded, and nothing else changes.
  void rehearse() {
    const std::string everything = "SELECT coalesce(string_agg(to_jsonb(i)::text, ' ' ORDER BY id), '') FROM takt.all_items i";
    const auto before = database_.text(everything);
    const auto& job = jobs_[static_cast<std::size_t>(roll(2))];
    const auto run_id = ++last_run_;
    const std::string tick = "manual:dry" + std::to_string(run_id);
    const auto claim = claim_batch(*database_, {job, tick, clock_.now(), "manual", run_id, "w", 0, true});
    EXPECT_TRUE(claim.items.empty());
    RunRecord run;
    run.run_id = run_id;
    run.job = &job;
    run.tick_id = tick;
    run.source = claim.source;
    run.worker = "w";
    run.dry_run = true;
    EXPECT_EQ(settle_run(*database_, run).items, 0);
    EXPECT_EQ(database_.text(everything), before);
  }
  void retry_blocked() {
    const auto rows = database_->exec(
        std::string("UPDATE takt.items SET state = 0, attempt = 0, replay = replay + 1, run_at = now() WHERE state = 5 RETURNING id"));
    for (std::size_t i = 0; i < rows.size(); ++i) ++lives_[rows.integer(i, 0)];
  }
  void replay() {
    const auto rows =
        database_->exec(std::string("SELECT id, item_id, job || key FROM takt.dead_letters WHERE state = 'archived' ORDER BY id LIMIT 2"));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (owned_by_another(std::string(rows.text(i, 2)), nullptr)) continue;  // a replay waits for who asked for its key before
      const std::vector<std::string> ids{std::string(rows.text(i, 0))};
      const auto replayed = replay_letters(*database_, ids, "ada");
      if (replayed.items == 1) ++lives_[rows.integer(i, 1)];
      EXPECT_EQ(replay_letters(*database_, ids, "bob").items, 0) << "replayed twice";
    }
  }

  void finish_all() {
    for (auto& worker : workers_) {
      while (worker.held) finish(worker, true);
    }
  }

  /// Everything is well again: what is left comes to its end.
  void drain() {
    for (auto& caller : callers_) end(caller, true);
    resume();
    for (int round = 0; round < 200; ++round) {
      finish_all();
      database_->exec(std::string("UPDATE takt.ticks SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"));
      database_->exec(std::string("UPDATE takt.ticks SET publish_at = publish_at - interval '1 min' WHERE finished_at IS NULL"));
      clock_.advance(60s);
      retry_blocked();
      database_->exec(std::string("UPDATE takt.items SET run_at = now() - interval '1 s'"));
      rescue();
      scan();
      for (auto& worker : workers_) {
        deliver(worker);
      }
      finish_all();
      archive();
      if (number("SELECT count(*) FROM takt.all_items WHERE state IN ('pending', 'running', 'blocked')") == 0) break;
    }
    finish_all();
    rescue();
    archive();
  }

  /// The state machine: a final state is left by a replay alone, and nobody turns back.
  void check_transitions() {
    const auto rows = database_->exec(std::string("SELECT id, state, replay FROM takt.all_items"));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const State now{std::string(rows.text(i, 1)), static_cast<int>(rows.integer(i, 2))};
      const auto [at, first] = states_.try_emplace(rows.integer(i, 0), now);
      if (first) continue;
      const State before = std::exchange(at->second, now);
      if (now == before) continue;
      EXPECT_NE(before.name, "done") << "left for " << now.name;
      EXPECT_GE(now.replay, before.replay);
      if (before.name == "dead" || before.name == "blocked") {
        EXPECT_EQ(now.replay > before.replay, true) << before.name << " became " << now.name << " without an operator";
      }
    }
  }

  void check() {
    check_transitions();
    EXPECT_EQ(number("SELECT count(*) - count(DISTINCT id) FROM takt.all_items"), 0) << "an item in two places";
    EXPECT_EQ(number("SELECT count(*) FROM takt.all_items"), static_cast<std::int64_t>(payloads_.size()))
        << "an item is gone, or came from nowhere";
    EXPECT_EQ(
        number(
            "SELECT count(*) FROM (SELECT i.id FROM takt.all_items i LEFT JOIN takt.attempts a ON a.item_id = i.id AND a.replay = i.replay"
            " WHERE i.state <> 'running' GROUP BY i.id, i.attempts HAVING i.attempts <> count(a.*)) wrong"),
        0)
        << "attempts that are not all accounted for";
    EXPECT_EQ(number("SELECT count(*) FROM (SELECT item_id, replay FROM takt.attempts WHERE class = 'done' GROUP BY 1, 2 HAVING count(*) > "
                     "1) twice"),
              0);
    EXPECT_LE(number("SELECT count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id"
                     " WHERE j.name = 'solo' AND t.lease_until > now() AND EXISTS (SELECT 1 FROM takt.runs r WHERE r.id = t.run_id AND "
                     "r.item_ids <> '{}')"),
              1)
        << "two runs of a job that allows one";
  }

  TestDatabase& database_;
  const Term term_;
  std::mt19937 dice_;
  FakeClock clock_;
  std::unique_ptr<DueScan> scan_ = new_leader();
  KeyRing keys_ = KeyRing::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "simulation");
  std::vector<CatalogJob> jobs_;
  std::vector<Message> queue_;
  std::array<Worker, kWorkers> workers_;
  std::int64_t last_run_ = 0;
  int together_ = 0;
  int paused_for_ = 0;                            ///< turns
  std::map<std::int64_t, std::string> payloads_;  ///< of every accepted item, as PostgreSQL writes it
  std::array<Caller, kCallers> callers_;
  struct State {
    std::string name;
    int replay;
    bool operator==(const State&) const = default;
  };
  std::map<std::int64_t, State> states_;                      ///< as of the last check
  std::map<std::int64_t, int> lives_;                         ///< how often an item began anew
  std::set<std::pair<std::int64_t, int>> calls_, done_;       ///< item and life × 1000 + attempt; item and life
  std::set<std::pair<std::int64_t, int>> unspent_;            ///< attempts that may come again under their number
  std::map<std::pair<std::int64_t, int>, int> own_attempts_;  ///< of an item and life: spent, and not lost with their worker
};

// TAKT_SIMULATION_SEEDS: how many, from 1 on; TAKT_SIMULATION_SEED: that one alone.
TEST(Simulation, KeepsEveryInvariantWhateverTheSeed) {
  TestDatabase database;
  database.apply(definitions());
  const SystemClock clock;
  Leadership leadership(*database, 60s, clock);
  const char* one = std::getenv("TAKT_SIMULATION_SEED");
  const char* many = std::getenv("TAKT_SIMULATION_SEEDS");
  const unsigned first = one != nullptr ? static_cast<unsigned>(std::atoi(one)) : 1;
  const unsigned last = one != nullptr ? first : many != nullptr ? static_cast<unsigned>(std::atoi(many)) : 25;
  int together = 0;
  for (unsigned seed = first; seed <= last; ++seed) {
    ASSERT_TRUE(leadership.try_lead());
    SCOPED_TRACE("TAKT_SIMULATION_SEED=" + std::to_string(seed));
    Simulation simulation(database, leadership, seed);
    simulation.run();
    together += simulation.together();
    if (testing::Test::HasFailure()) break;
  }
  if (one == nullptr) {
    EXPECT_GT(together, 0) << "chains that end their runs together were not simulated";
  }
}

}  // namespace
}  // namespace takt
