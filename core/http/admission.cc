#include "core/http/admission.h"

#include <algorithm>

namespace takt {

Admission::Admission(int per_host, int in_all, int lanes)
    : per_host_(per_host), in_all_(in_all), lanes_(lanes), active_(static_cast<std::size_t>(lanes)) {}

bool Admission::is_full(const Host& host) const {
  for (int lane = 0; lane < lanes_; ++lane) {
    if (has_place(host, lane)) return false;
  }
  return true;
}

void Admission::begin(Host& host, int lane) {
  ++host.active[lane_index(lane)];
  ++active_[lane_index(lane)];
}

std::optional<int> Admission::enter(std::uint64_t id, const std::string& name, int preferred) {
  auto& host = *hosts_.try_emplace(name).first;
  auto& active = host.second.active;
  active.resize(active_.size());
  if (is_full(host.second)) {
    host.second.waiting.push_back(id);
    return std::nullopt;
  }
  const auto takes = [&](int lane) { return has_place(host.second, lane) && active_[lane_index(lane)] < places(lane); };
  int chosen = -1;
  if (preferred >= 0 && takes(preferred)) {
    chosen = preferred;
  } else {
    for (int lane = 0; lane < lanes_; ++lane) {
      if (takes(lane) && (chosen < 0 || active[lane_index(lane)] < active[lane_index(chosen)])) chosen = lane;
    }
  }
  if (chosen < 0) {
    among_all_.push_back({id, &host});
    ++host.second.among_all;
    return std::nullopt;
  }
  begin(host.second, chosen);
  return chosen;
}

std::optional<std::uint64_t> Admission::leave(const std::string& name, int lane) {
  auto& host = *hosts_.find(name);
  --host.second.active[lane_index(lane)];
  --active_[lane_index(lane)];
  bring_forward(host);
  std::optional<std::uint64_t> next;
  for (auto waiting = among_all_.begin(); waiting != among_all_.end() && !next;) {
    auto& other = waiting->host->second;
    if (has_place(other, lane)) {
      next = waiting->id;
      begin(other, lane);
    } else if (is_full(other)) {
      other.waiting.push_front(waiting->id);
    } else {
      ++waiting;  // until a place among all is free in one of this host's lanes
      continue;
    }
    --other.among_all;
    waiting = among_all_.erase(waiting);
  }
  forget_if_idle(host);
  return next;
}

bool Admission::withdraw(std::uint64_t id, const std::string& name) {
  const auto found = hosts_.find(name);
  if (found == hosts_.end()) return false;
  auto& host = *found;
  auto& waiting = host.second.waiting;
  if (const auto at = std::find(waiting.begin(), waiting.end(), id); at != waiting.end()) {
    waiting.erase(at);
    forget_if_idle(host);
    return true;
  }
  const auto at = std::find_if(among_all_.begin(), among_all_.end(), [id](const Waiting& one) { return one.id == id; });
  if (at == among_all_.end()) return false;
  among_all_.erase(at);
  --host.second.among_all;
  bring_forward(host);
  forget_if_idle(host);
  return true;
}

void Admission::bring_forward(NamedHost& host) {
  auto& waiting = host.second.waiting;
  if (waiting.empty()) return;
  among_all_.push_back({waiting.front(), &host});
  ++host.second.among_all;
  waiting.pop_front();
}

void Admission::forget_if_idle(const NamedHost& host) {
  const auto& active = host.second.active;
  const bool idle = std::count(active.begin(), active.end(), 0) == lanes_;
  if (idle && host.second.waiting.empty() && host.second.among_all == 0) hosts_.erase(hosts_.find(host.first));
}

}  // namespace takt
