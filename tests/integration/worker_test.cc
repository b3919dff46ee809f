// The service's own threads: how it begins and ends.
#include "worker/worker.h"

#include <gtest/gtest.h>

#include <future>

#include "tests/support/fixture.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

constexpr int kRounds = 300;
constexpr auto kLongest = 120s;

/// What its threads do between looking whether it stops and waiting for a tick is over in nanoseconds, so each round gives many of
/// them one chance to miss the wake-up. With stopping_ set outside of the mutex, and a sleep of a microsecond put into that place,
/// it hangs; without the sleep it takes more rounds than these.
TEST(WorkerTest, Finding30_ItStopsWheneverItIsToldAlsoWhileItsThreadsBeginToWait) {
  TestDatabase database;
  Database vital(Secret(database.url()), one_connection());
  const SystemClock clock;
  SeededRandom random{1};
  const auto keys = KeyRing::parse(generate_signing_secret().reveal(), "test");
  amqp::Publisher publisher(nowhere(), {});
  std::promise<void> ended;
  std::thread rounds([&] {
    for (int round = 0; round < kRounds; ++round) {
      Metrics metrics;
      Worker::Settings settings;
      settings.runs = 32;
      settings.grace = 1s;
      settings.max_tick_age = 24h;
      settings.queues = {"default"};
      Worker worker(*database, vital, nowhere(), publisher, keys, clock, random, metrics, settings);
      worker.start();
      std::this_thread::sleep_for(std::chrono::microseconds(round * 7 % 200));
      worker.stop();
    }
    ended.set_value();
  });
  if (ended.get_future().wait_for(kLongest) != std::future_status::ready) {
    std::fputs("a worker's stop() hangs: one of its threads sleeps on\n", stderr);
    std::abort();  // nothing can be joined
  }
  rounds.join();
}

}  // namespace
}  // namespace takt
