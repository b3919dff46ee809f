#pragma once
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/db/database.h"
#include "core/observe/log_throttle.h"
#include "core/tick/signing.h"

namespace takt {

/// Who a process is: the same in its log, in takt.services and in the runs it makes.
struct ServiceIdentity {
  std::string id;                  ///< 12 hexadecimal digits, new for each process
  std::string kind;                ///< "dispatcher", "worker", "archive" or "up", which is all three
  std::vector<std::string> roles;  ///< what it does, of the first three
  std::string host;
  int pid = 0;
  std::string version;            ///< of Takt
  std::vector<std::string> keys;  ///< "current dbfc186b": role and fingerprint, of those that are valid; at its start, or as its row says

  /// "6908f4245f95@web-1"
  [[nodiscard]] std::string name() const { return id + "@" + host; }
};

/// What the words of the key that a process signs with begin with.
constexpr std::string_view kCurrentKey = "current ";

/// Role and fingerprint of each key that is valid at `now`; never a secret.
std::vector<std::string> shown_keys(const KeyRing& keys, Timestamp now);

/// This process.
ServiceIdentity identify_service(std::string kind, std::vector<std::string> roles, const KeyRing& keys, Timestamp now);

/// How often a service says that it lives, and after what silence it is said to have gone. Between the two lies a write that
/// had to wait.
constexpr Duration kSignOfLife = std::chrono::milliseconds(1500);
constexpr Duration kSilentAfter = std::chrono::milliseconds(3500);
/// How often the leader looks at all of them: a process that is killed is told within five seconds.
constexpr Duration kServicesInterval = std::chrono::seconds(1);
constexpr std::size_t kMostFailing = 20;
/// How long a silent one is remembered; and for how long it is told as a trouble where one like it started on its host since.
constexpr Duration kForgetSilent = std::chrono::hours(1);
constexpr Duration kReplacedIsTold = std::chrono::minutes(5);

/// A job whose latest attempts all failed in one worker.
struct FailingJob {
  std::string job;
  std::int64_t attempts = 0;  ///< in a row
  std::string error;          ///< of the last
  /// Seconds since the first of them, where they are so few that they prove nothing if the job's items succeed elsewhere.
  std::optional<double> few_since_s;
};

/// What changes while a service lives.
struct SignOfLife {
  std::vector<std::string> keys;    ///< shown_keys(): a retired one ends while a service lives
  std::vector<std::string> queues;  ///< whose ticks it takes
  bool ready = true;
  std::string detail;                            ///< why it is not ready; at most 500 bytes are kept
  int runs = 0;                                  ///< under way
  int places = 0;                                ///< runs it may have under way at once; 0: it is no worker
  std::vector<FailingJob> failing;               ///< the worst first; kMostFailing are kept
  std::map<std::string, std::uint64_t> waiting;  ///< of the leader: messages in the broker's queues, by queue
};

/// Keeps this process's row in takt.services: one small write each kSignOfLife, on a thread of its own, and none for work that
/// is done. The row goes with the process where that ends in order; the leading dispatcher removes what stayed
/// (forget_gone()). A write that fails is one line in the log a minute, and tried again.
class Presence {
 public:
  /// `look`: called on the thread; must not block.
  Presence(Database& database, ServiceIdentity identity, const Clock& clock, std::function<SignOfLife()> look);
  ~Presence();
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;

  /// The first sign is written before this returns, or has failed.
  void start();
  void stop();

 private:
  void write();
  Database& database_;
  const ServiceIdentity identity_;
  const std::function<SignOfLife()> look_;
  LogThrottle failed_;
  std::mutex mutex_;
  std::condition_variable ending_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace takt
