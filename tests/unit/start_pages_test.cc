#include "core/process/start_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

namespace takt {
namespace {

constexpr std::size_t kBytes = 1024 * 1024;

/// A file's private mapping of 1 MiB, which holds 'f' throughout.
class MappedFile {
 public:
  MappedFile() {
    std::string name = "/tmp/takt-start-pages-XXXXXX";
    const int file = ::mkstemp(name.data());
    const std::string content(kBytes, 'f');
    EXPECT_EQ(::write(file, content.data(), kBytes), static_cast<ssize_t>(kBytes));
    address_ = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
    ::close(file);
    ::unlink(name.c_str());
  }
  ~MappedFile() { ::munmap(address_, kBytes); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  char& operator[](std::size_t at) { return address_[at]; }
  void seal() { ASSERT_EQ(::mprotect(address_, kBytes, PROT_READ), 0); }

 private:
  char* address_;
};

std::size_t resident_file_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoul(line.substr(8));
  }
  return 0;
}

TEST(StartPages, GivesBackWhatWasOnlyReadOfAFile) {
  MappedFile read;
  read.seal();
  for (std::size_t at = 0; at < kBytes; at += 4096) ASSERT_EQ(read[at], 'f');
  const auto before = resident_file_kb();
  EXPECT_GE(give_back_start_pages(), kBytes);
  EXPECT_LE(resident_file_kb() + kBytes / 1024, before);
  EXPECT_EQ(read[kBytes - 1], 'f') << "it is read from the file again";
}

TEST(StartPages, KeepsWhatWasWrittenBeforeAMappingBecameReadOnly) {
  MappedFile relocated;
  relocated[4096] = 'w';
  relocated.seal();
  give_back_start_pages();
  EXPECT_EQ(relocated[4096], 'w');
}

}  // namespace
}  // namespace takt
