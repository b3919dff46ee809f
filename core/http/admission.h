#pragma once
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace takt {

/// Which requests may be on their way: at most `per_host` to one host, and `in_all` to all hosts together. Those over
/// either wait, first come first served.
///
/// Both are divided among `lanes`, each a thread with connections of its own, and a request begins in a lane that has a
/// place for its host: so the lanes together never open more connections than these bounds, kept ones included.
///
/// Pure: no I/O, no clock, no lock; its owner guards it. Memory: those that wait.
class Admission {
 public:
  Admission(int per_host, int in_all, int lanes);

  /// The lane in which the request may begin: `preferred` where that has a place, otherwise the one with the fewest
  /// requests to this host. None: it waits, until leave() returns it. Ids are the caller's and unique among those waiting.
  std::optional<int> enter(std::uint64_t id, const std::string& host, int preferred = -1);
  /// A request to `host` in `lane` has ended. The one that takes its place there, if any: this host's next, behind those
  /// of others that already wait for a place among all.
  std::optional<std::uint64_t> leave(const std::string& host, int lane);
  /// One that waits is given up. False: it does not wait.
  bool withdraw(std::uint64_t id, const std::string& host);

  /// Of `in_all`, the part of one lane.
  [[nodiscard]] int places(int lane) const { return share(in_all_, lane); }

 private:
  struct Host {
    std::vector<int> active;            ///< a lane
    std::deque<std::uint64_t> waiting;  ///< for a place among this host's
    int among_all = 0;                  ///< of its requests in among_all_
  };
  using Hosts = std::unordered_map<std::string, Host>;
  using NamedHost = Hosts::value_type;
  struct Waiting {
    std::uint64_t id;
    NamedHost* host;
  };

  [[nodiscard]] int share(int whole, int lane) const { return whole / lanes_ + (lane < whole % lanes_ ? 1 : 0); }
  [[nodiscard]] bool has_place(const Host& host, int lane) const { return host.active[lane_index(lane)] < share(per_host_, lane); }
  [[nodiscard]] bool is_full(const Host& host) const;
  [[nodiscard]] static std::size_t lane_index(int lane) { return static_cast<std::size_t>(lane); }
  void begin(Host& host, int lane);
  /// The next that waits for a place of the host's waits for a place among all.
  void bring_forward(NamedHost& host);
  void forget_if_idle(const NamedHost& host);

  const int per_host_, in_all_, lanes_;
  std::vector<int> active_;  ///< a lane
  Hosts hosts_;              ///< those with requests
  std::deque<Waiting> among_all_;
};

}  // namespace takt
