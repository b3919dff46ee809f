#include "cli/enqueue_file.h"

#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>

#include "cli/commands.h"
#include "core/db/query.h"
#include "core/text/exact_json.h"
#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kLinesASet = 1000;
constexpr std::size_t kBytesASet = 8 * 1024 * 1024;
constexpr std::size_t kMaxLineBytes = 600 * 1024;
constexpr std::size_t kSetsUnderWay = 2;
constexpr std::size_t kMostFaults = 20;

struct NewItems {
  std::string job;
  std::vector<std::string> payloads;
  std::optional<std::vector<std::int64_t>> priorities;
  static constexpr auto fields() { return std::tuple(&NewItems::job, &NewItems::payloads, &NewItems::priorities); }
};
constexpr Query<NewItems, Count> kEnqueue{"enqueue_many",
                                          "SELECT count(*) AS count FROM takt.enqueue_many($1, $2::jsonb[], NULL, NULL, $3::integer[])"};

class FileEnqueue {
 public:
  FileEnqueue(Database& database, const std::string& path, const std::string& job, int priority)
      : database_(database), path_(path), job_(job), priority_(priority) {}

  std::size_t run() {
    const bool piped = path_ == "-";
    std::ifstream file;
    if (!piped) {
      file.open(path_);
      if (!file || std::filesystem::is_directory(path_)) throw CommandFailed(path_ + ": cannot be read");
      // What can be read only once is judged as it is stored.
      if (std::filesystem::is_regular_file(path_)) {
        judge(file);
        file.clear();
        file.seekg(0);
        if (!file) throw CommandFailed(path_ + ": cannot be read a second time");
      }
    }
    std::istream& lines = piped ? std::cin : file;
    try {
      for (std::string line; std::getline(lines, line);) {
        ++line_;
        if (trim(line).empty()) continue;
        take(std::move(line));
        if (set_.size() == kLinesASet || bytes_ >= kBytesASet) send();
      }
      send();
      while (!under_way_.empty()) wait_for_oldest();
    } catch (const UsageError& error) {
      throw UsageError(error.what() + std::string("\n") + outcome());
    } catch (const std::exception& error) {
      throw CommandFailed(error.what() + std::string("\n") + outcome());
    }
    if (::isatty(STDERR_FILENO) != 0) std::cerr << "\r";
    return stored_;
  }

 private:
  struct Set {
    std::size_t first_line, last_line, size;
    std::future<void> stored;
  };

  [[nodiscard]] std::string where(std::size_t line) const { return (path_ == "-" ? "standard input" : path_) + ":" + std::to_string(line); }

  void check(const std::string& line, std::size_t number) const {
    if (line.size() > kMaxLineBytes) throw UsageError(where(number) + ": longer than 600 KiB");
    check_json(line, where(number));
  }

  /// All that is wrong with a file, before anything of it is stored.
  void judge(std::istream& file) const {
    std::string faults;
    std::size_t count = 0, number = 0;
    for (std::string line; std::getline(file, line);) {
      ++number;
      if (trim(line).empty()) continue;
      try {
        check(line, number);
      } catch (const UsageError& fault) {
        if (++count <= kMostFaults) faults += std::string(fault.what()) + "\n";
      }
    }
    if (count == 0) return;
    throw UsageError(faults + std::to_string(count) + (count == 1 ? " line is" : " lines are") + " wrong" +
                     (count > kMostFaults ? " (the first " + std::to_string(kMostFaults) + " are shown)" : "") + "; nothing was stored");
  }

  void take(std::string&& line) {
    check(line, line_);
    if (set_.empty()) first_line_ = line_;
    bytes_ += line.size();
    set_.push_back(std::move(line));
  }

  void send() {
    if (set_.empty()) return;
    if (under_way_.size() == kSetsUnderWay) wait_for_oldest();
    std::optional<std::vector<std::int64_t>> priorities;
    if (priority_ != 0) priorities.emplace(set_.size(), priority_);
    const std::size_t size = set_.size();
    under_way_.push_back({first_line_, line_, size, std::async(std::launch::async, [this, payloads = std::move(set_), priorities] {
                            query_retrying(database_, kEnqueue, {job_, payloads, priorities});
                          })});
    set_.clear();
    bytes_ = 0;
  }

  void wait_for_oldest() {
    under_way_.front().stored.get();
    stored_ += under_way_.front().size;
    stored_to_ = under_way_.front().last_line;
    under_way_.pop_front();
    if (::isatty(STDERR_FILENO) != 0) std::cerr << "\r" << stored_ << " items" << std::flush;
  }

  /// Which lines are stored, and which are not: sets end in any order.
  std::string outcome() {
    std::string not_stored;
    while (!under_way_.empty()) {
      auto& set = under_way_.front();
      bool failed = !set.stored.valid();  // it is the one that was thrown
      try {
        if (!failed) set.stored.get();
      } catch (const std::exception&) {
        failed = true;
      }
      if (failed)
        not_stored += "lines " + std::to_string(set.first_line) + " to " + std::to_string(set.last_line) + ", ";
      else
        stored_ += set.size;
      stored_to_ = set.last_line;
      under_way_.pop_front();
    }
    return std::to_string(stored_) + (stored_ == 1 ? " item was" : " items were") + " stored; not stored: " + not_stored +
           "all from line " + std::to_string(stored_to_ + 1) + " on";
  }

  Database& database_;
  const std::string path_, job_;
  const int priority_;
  std::size_t line_ = 0, stored_ = 0;
  std::size_t stored_to_ = 0;  // the last line of the sets that have ended
  std::vector<std::string> set_;
  std::size_t first_line_ = 0, bytes_ = 0;  // of set_
  std::deque<Set> under_way_;
};

}  // namespace

void check_json(const std::string& text, const std::string& where) {
  const auto refusal = json_refusal(text);
  if (!refusal) return;
  if (refusal->fault == JsonFault::limit) throw UsageError(where + ": holds a NUL character, which PostgreSQL cannot store");
  throw UsageError(where + ": not JSON, at character " + std::to_string(refusal->at + 1));
}

std::size_t enqueue_file(Database& database, const std::string& path, const std::string& job, int priority) {
  return FileEnqueue(database, path, job, priority).run();
}

}  // namespace takt
