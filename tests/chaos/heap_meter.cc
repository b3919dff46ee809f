// Linked into takt-crashing: a thread that writes, ten times a second, how many bytes the process holds of its heap into the file that
// TAKT_HEAP_FILE names. Resident memory cannot show a small leak, which fills holes first; this can.
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

void write_heap(int file) {
  for (;;) {
    const struct mallinfo2 heap = ::mallinfo2();
    char line[32];
    const int length = std::snprintf(line, sizeof line, "%20zu\n", heap.uordblks + heap.hblkhd);
    if (::pwrite(file, line, static_cast<std::size_t>(length), 0) != length) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

struct Meter {
  Meter() {
    const char* path = std::getenv("TAKT_HEAP_FILE");
    if (path == nullptr) return;
    const int file = ::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return;
    // Signals are for the service's own threads.
    sigset_t all, before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &before);
    std::thread(write_heap, file).detach();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
};

const Meter kMeter;

}  // namespace
