#include "core/process/start_pages.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace takt {

namespace {

/// One mapping of /proc/self/smaps (proc(5)).
struct Mapping {
  std::uintptr_t begin = 0, end = 0;
  bool read_only_file = false;
  std::size_t resident = 0, written = 0;  ///< kB: in memory; and copied because it was written to, as relocations are
};

std::vector<Mapping> mappings() {
  std::vector<Mapping> found;
  std::ifstream smaps("/proc/self/smaps");
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t begin = 0, end = 0;
    unsigned long inode = 0;
    char permissions[5] = {};
    std::size_t value = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx %4s %*s %*s %lu", &begin, &end, permissions, &inode) == 4) {
      found.push_back({begin, end, inode != 0 && permissions[0] == 'r' && permissions[1] == '-' && permissions[3] == 'p', 0, 0});
    } else if (!found.empty() && std::sscanf(line.c_str(), "Rss: %zu kB", &value) == 1) {
      found.back().resident = value;
    } else if (!found.empty() && std::sscanf(line.c_str(), "Anonymous: %zu kB", &value) == 1) {
      found.back().written = value;
    }
  }
  return found;
}

}  // namespace

std::size_t give_back_start_pages() {
  ::malloc_trim(0);
  std::size_t bytes = 0;
  for (const auto& mapping : mappings()) {
    if (!mapping.read_only_file || mapping.written > 0 || mapping.resident == 0) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address out of a text
    if (::madvise(reinterpret_cast<void*>(mapping.begin), mapping.end - mapping.begin, MADV_DONTNEED) == 0)
      bytes += mapping.resident * 1024;
  }
  return bytes;
}

}  // namespace takt
