#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "cli/bench/stand.h"
#include "core/db/query.h"

namespace takt::bench {

namespace {

double per_second(double count, SteadyTime began, SteadyTime ended) { return count / seconds_between(began, ended); }

/// CPU time of this process, all threads, in microseconds.
double cpu_us() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& time) { return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec); };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

/// Ends the worker before what its functions refer to is gone, also when a wait fails.
struct WorkerEnd {
  Stand& stand;
  ~WorkerEnd() { stand.stop_worker(); }
};

HandlerResult done() {
  HandlerResult result;
  result.item_class = ItemClass::done;
  return result;
}

struct Before {
  std::string wal;
  static constexpr auto fields() { return std::tuple(Field("wal", &Before::wal)); }
};
constexpr Query<NoRequest, Before> kBefore{"bench_before", "SELECT pg_current_wal_insert_lsn()::text AS wal"};
struct Began {
  Timestamp at;
  static constexpr auto fields() { return std::tuple(Field("now_us", &Began::at)); }
};
constexpr Query<NoRequest, Began> kBegan{"bench_began", "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us"};
struct OfDrain {
  std::int64_t job_id = 0;
  std::string wal_before;
  static constexpr auto fields() { return std::tuple(&OfDrain::job_id, &OfDrain::wal_before); }
};
struct After {
  Timestamp finished_at;
  std::int64_t done = 0, runs = 0, wal_bytes = 0;
  static constexpr auto fields() {
    return std::tuple(Field("finished_us", &After::finished_at), Field("done", &After::done), Field("runs", &After::runs),
                      Field("wal_bytes", &After::wal_bytes));
  }
};
constexpr Query<OfDrain, After> kAfter{"bench_after",
                                       "SELECT (extract(epoch FROM max(finished_at)) * 1000000)::bigint AS finished_us, sum(done) AS done,"
                                       " count(*) AS runs, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $2::pg_lsn)::bigint AS wal_bytes"
                                       " FROM takt.runs WHERE job_id = $1"};

/// A backlog that is there before the worker starts, drained to the last item. From resuming the job to the end of the
/// last run by PostgreSQL's clock.
Figures drain(Stand& stand, const JobDefinition& job, int count, const std::string& bench) {
  const auto id = stand.install(job);
  stand.fill(job.name, count);
  stand.start_dispatcher();
  std::atomic<int> handled = 0;
  const WorkerEnd end{stand};
  stand.start_worker({{"count", [&handled](const NativeItem&) {
                         ++handled;
                         return done();
                       }}});
  auto& database = stand.database();
  database.exec(std::string("CHECKPOINT"));
  const auto before = query(database, kBefore).at(0);
  const auto round_trips = database.round_trips();
  const double cpu_before = cpu_us();
  const bool native = std::holds_alternative<NativeHandlerConfig>(job.handler);
  const auto began = query(database, kBegan).at(0).at;
  stand.resume(id);
  stand.wait(
      "the drain", [&] { return (!native || handled >= count) && stand.drained(id); },
      [&] { return bench + ": " + std::to_string(handled) + " of " + std::to_string(count); });
  const auto after = query(database, kAfter, {id, before.wal}).at(0);
  stand.stop_worker();
  if (after.done != count) {
    throw CommandFailed(bench + ": " + std::to_string(after.done) + " of " + std::to_string(count) + " items ended done");
  }
  const double seconds = std::chrono::duration<double>(after.finished_at - began).count();
  const double runs = static_cast<double>(after.runs);
  return {{bench, "items", count / seconds, "1/s"},
          {bench, "runs", runs / seconds, "1/s"},
          {bench, "round trips a run", static_cast<double>(database.round_trips() - round_trips) / runs, ""},
          {bench, "WAL an item", static_cast<double>(after.wal_bytes) / count, "bytes"},
          {bench, "CPU an item, this process", (cpu_us() - cpu_before) / count, "us"}};
}

/// Enqueues of each connection before the clock runs: an application keeps its connections, and PostgreSQL plans a connection's
/// first calls anew.
constexpr int kWarmUp = 10;

/// A thread for each connection, which enqueues one item a transaction.
double single_enqueues(Stand& stand, const std::string& job, int count) {
  const auto& url = required_environment("TAKT_DATABASE_URL", "postgresql://user:password@host:5432/database");
  std::vector<std::unique_ptr<DatabaseConnection>> connections;
  connections.reserve(static_cast<std::size_t>(stand.options().connections));
  for (int i = 0; i < stand.options().connections; ++i) connections.push_back(connect_database(url, {}));
  std::atomic<bool> failed = false;
  const auto enqueue = [&](int total) {
    std::atomic<int> next = 0;
    std::vector<std::thread> threads;
    threads.reserve(connections.size());
    for (auto& connection : connections) {
      threads.emplace_back([&, on = connection.get()] {
        constexpr Statement kEnqueue{"bench_enqueue", "SELECT takt.enqueue($1, $2::jsonb)"};
        try {
          for (int n = next++; n < total && !failed; n = next++) on->session().exec(kEnqueue, Params::of(job, stand.payload(n)));
        } catch (const std::exception&) {
          failed = true;
        }
      });
    }
    for (auto& thread : threads) thread.join();
  };
  enqueue(kWarmUp * stand.options().connections);
  const auto began = std::chrono::steady_clock::now();
  enqueue(count);
  if (failed) throw CommandFailed("enqueue: PostgreSQL refused; has it room for " + std::to_string(connections.size()) + " connections?");
  return per_second(count, began, std::chrono::steady_clock::now());
}

double set_enqueues(Stand& stand, const std::string& job, int count) {
  constexpr int kSet = 1000;
  std::atomic<int> next = 0;
  std::atomic<bool> failed = false;
  const auto began = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  threads.reserve(2);
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      constexpr Statement kEnqueue{"bench_enqueue_many", "SELECT count(*) FROM takt.enqueue_many($1, $2::jsonb[])"};
      try {
        for (int first = next.fetch_add(kSet); first < count && !failed; first = next.fetch_add(kSet)) {
          std::vector<std::string> payloads;
          for (int n = first; n < std::min(count, first + kSet); ++n) payloads.push_back(stand.payload(n));
          stand.database().exec(kEnqueue, Params::of(job, payloads));
        }
      } catch (const std::exception&) {
        failed = true;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (failed) throw CommandFailed("enqueue: PostgreSQL refused");
  return per_second(count, began, std::chrono::steady_clock::now());
}

}  // namespace

Figures measure_drain(Stand& stand) {
  return drain(stand, plain_job(stand, "drain", NativeHandlerConfig{"count"}), stand.count(100'000), "drain");
}

Figures measure_enqueue(Stand& stand) {
  const auto job = plain_job(stand, "enqueue", NativeHandlerConfig{"noop"});
  stand.install(job);
  const int count = stand.count(100'000);
  return {{"enqueue", "in sets of 1,000", set_enqueues(stand, job.name, count), "1/s"},
          {"enqueue", "one a commit, " + std::to_string(stand.options().connections) + " connections",
           single_enqueues(stand, job.name, std::max(1, count / 4)), "1/s"}};
}

Figures measure_http(Stand& stand) {
  const Receiver receiver;
  HttpHandlerConfig http;
  http.url = stand.options().url.empty() ? receiver.url() : stand.options().url;
  http.method = "POST";
  http.parallel = stand.options().connections;
  return drain(stand, plain_job(stand, "http", http), stand.count(20'000), "http");
}

Figures measure_latency(Stand& stand) {
  const auto job = plain_job(stand, "latency", NativeHandlerConfig{"stamp"});
  const auto id = stand.install(job);
  constexpr int kFirst = 50;  // not counted: what connections and their statements cost once
  const int count = kFirst + stand.count(1000);
  constexpr Duration kApart = std::chrono::milliseconds(10);  // 100 a second
  std::vector<SteadyTime> committed(static_cast<std::size_t>(count)), started(static_cast<std::size_t>(count));
  std::atomic<int> handled = 0;
  const WorkerEnd end{stand};
  stand.start_dispatcher();
  stand.start_worker({{"stamp", [&](const NativeItem& item) {
                         const auto now = std::chrono::steady_clock::now();
                         started.at(nlohmann::json::parse(item.payload).at("n").get<std::size_t>()) = now;
                         ++handled;
                         return done();
                       }}});
  stand.resume(id);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto application = connect_database(required_environment("TAKT_DATABASE_URL", "postgresql://…"), {});
  constexpr Statement kEnqueue{"bench_enqueue", "SELECT takt.enqueue($1, $2::jsonb)"};
  const double cpu_before = cpu_us();
  auto next = std::chrono::steady_clock::now();
  for (int n = 0; n < count; ++n, next += kApart) {
    check_interrupted();
    std::this_thread::sleep_until(next);
    application->session().exec(kEnqueue, Params::of(job.name, stand.payload(n)));
    committed[static_cast<std::size_t>(n)] = std::chrono::steady_clock::now();
  }
  stand.wait("the last item", [&] { return handled >= count; });
  const double cpu_an_item = (cpu_us() - cpu_before) / count;
  stand.wait("the last run", [&] { return stand.drained(id); });
  stand.stop_worker();
  std::vector<double> ms;
  for (std::size_t n = kFirst; n < committed.size(); ++n) ms.push_back(std::max(0.0, seconds_between(committed[n], started[n]) * 1000));
  return {{"latency", "commit to handler, p50", percentile(ms, 0.50), "ms"},
          {"latency", "commit to handler, p95", percentile(ms, 0.95), "ms"},
          {"latency", "commit to handler, p99", percentile(ms, 0.99), "ms"},
          {"latency", "commit to handler, longest", percentile(ms, 1.0), "ms"},
          {"latency", "CPU an item, this process", cpu_an_item, "us"}};
}

}  // namespace takt::bench
