#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace takt {
namespace {

// cli → dispatcher, worker, dlq → core → proto, migrations. The services never include one another.
const std::map<std::string, std::set<std::string>> kMayInclude{{"core", {"core", "takt", "migrations"}},
                                                               {"dispatcher", {"dispatcher", "core", "takt"}},
                                                               {"worker", {"worker", "core", "takt"}},
                                                               {"dlq", {"dlq", "core", "takt"}},
                                                               {"cli", {"cli", "dispatcher", "worker", "dlq", "core", "takt"}}};

TEST(Architecture, DependenciesPointOneWay) {
  const std::filesystem::path source = TAKT_SOURCE_DIR;
  const std::regex include("^#include \"([a-z_]+)/");
  int files = 0;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(source / folder)) {
      if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
      ++files;
      std::ifstream file(entry.path());
      std::string line;
      while (std::getline(file, line)) {
        std::smatch found;
        if (std::regex_search(line, found, include)) {
          EXPECT_TRUE(allowed.contains(found[1])) << entry.path() << ": " << line;
        } else {
          EXPECT_FALSE(line.starts_with("#include \"")) << entry.path() << ": includes go by the folder's path: " << line;
        }
      }
    }
  }
  EXPECT_GT(files, 80);
}

// The rooms of core/: each uses those before it.
const std::vector<std::string> kRooms{"text", "time", "process", "observe", "db", "amqp", "http", "tick", "config", "installation"};

TEST(Architecture, EachRoomOfCoreUsesThoseBeforeIt) {
  const std::filesystem::path core = std::filesystem::path(TAKT_SOURCE_DIR) / "core";
  const std::regex include("^#include \"core/([a-z_]+)/");
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(core)) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
    ++files;
    const auto own = std::find(kRooms.begin(), kRooms.end(), entry.path().parent_path().filename());
    ASSERT_NE(own, kRooms.end()) << entry.path() << ": in no room";
    std::ifstream file(entry.path());
    std::string line;
    while (std::getline(file, line)) {
      std::smatch found;
      if (std::regex_search(line, found, include)) {
        EXPECT_LE(std::find(kRooms.begin(), kRooms.end(), found[1].str()), own) << entry.path() << ": " << line;
      }
    }
  }
  EXPECT_GT(files, 50);
}

TEST(Architecture, LibpqxxAndLibrabbitmqAreKnownToTheirOwnFilesOnly) {
  const std::filesystem::path source = TAKT_SOURCE_DIR;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(source / folder)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file(entry.path());
      std::string line;
      while (std::getline(file, line)) {
        EXPECT_TRUE(!line.starts_with("#include <pqxx") || entry.path().filename() == "connection.cc") << entry.path();
        EXPECT_TRUE(!line.starts_with("#include \"core/amqp/librabbitmq.h\"") || entry.path().parent_path().filename() == "amqp")
            << entry.path();
        EXPECT_TRUE(!line.starts_with("#include <amqp") || entry.path().filename() == "librabbitmq.h") << entry.path();
      }
    }
  }
}

}  // namespace
}  // namespace takt
