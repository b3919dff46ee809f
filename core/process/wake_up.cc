#include "core/process/wake_up.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>

namespace takt {

WakeUp::WakeUp() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (fd_ < 0) throw std::runtime_error("no event descriptor: too many open files");
}

WakeUp::~WakeUp() { ::close(fd_); }

void WakeUp::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(fd_, &one, sizeof one);
}

bool WakeUp::wait(Duration timeout) {
  pollfd watched{fd_, POLLIN, 0};
  if (timeout > Duration(0)) ::poll(&watched, 1, static_cast<int>(timeout.count()));
  std::uint64_t count = 0;
  return ::read(fd_, &count, sizeof count) == sizeof count;
}

}  // namespace takt
