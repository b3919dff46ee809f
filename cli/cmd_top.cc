#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <iostream>

#include "cli/commands.h"
#include "cli/status.h"
#include "core/text/text.h"

namespace takt {

namespace {

volatile std::sig_atomic_t ended = 0;

/// The terminal as keys are read one by one, and its other screen; as it was, when this ends. On what is no terminal it does nothing.
class Screen {
 public:
  Screen() : terminal_(::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) {
    if (!terminal_) return;
    ::tcgetattr(STDIN_FILENO, &before_);
    auto raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, [](int) { ended = 1; });
    std::cout << "\x1b[?1049h\x1b[?25l";
  }
  ~Screen() {
    if (!terminal_) return;
    std::cout << "\x1b[?25h\x1b[?1049l" << std::flush;
    ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  [[nodiscard]] bool terminal() const { return terminal_; }

  /// Over what stands there, line by line, so that nothing flickers; as many lines as there is room for.
  void draw(const std::string& text) const {
    if (!terminal_) {
      std::cout << text << std::flush;
      return;
    }
    std::string frame = "\x1b[H";
    const auto width = output_style().width;
    auto parts = split(text, '\n');
    if (parts.back().empty()) parts.pop_back();  // behind the last line's end
    for (std::size_t line = 0; line < parts.size(); ++line) {
      const auto part = parts[line];
      if (const auto left = parts.size() - line; line + 2 == height() && left > 1) {
        frame += "(" + std::to_string(left) + " lines more in a higher terminal)\x1b[K\n";
        break;
      }
      // The table's lines, which may be coloured, fit already.
      const bool coloured = part.find('\x1b') != std::string_view::npos;
      frame.append(coloured || width == 0 ? std::string(part) : cut(std::string(part), width)).append("\x1b[K\n");
    }
    std::cout << frame << "\x1b[J" << std::flush;
  }

  /// The next key, or 0 after `wait`.
  [[nodiscard]] char key(Duration wait) const {
    pollfd input{terminal_ ? STDIN_FILENO : -1, POLLIN, 0};
    char key = 0;
    if (::poll(&input, 1, static_cast<int>(wait.count())) == 1 && ::read(STDIN_FILENO, &key, 1) != 1) ended = 1;
    return key;
  }

 private:
  [[nodiscard]] static std::size_t height() {
    const auto rows = output_rows();
    return rows == 0 ? 1000 : rows;
  }
  const bool terminal_;
  termios before_{};
};

using Sorting = bool (*)(const JobStatus&, const JobStatus&);
struct SortKey {
  const char* name;
  Sorting before;
};
const std::array<SortKey, 5> kSortings{{
    {"job", [](const JobStatus& a, const JobStatus& b) { return a.name < b.name; }},
    {"due", [](const JobStatus& a, const JobStatus& b) { return a.due > b.due; }},
    {"oldest", [](const JobStatus& a, const JobStatus& b) { return a.oldest_due_s > b.oldest_due_s; }},
    {"rate", [](const JobStatus& a, const JobStatus& b) { return a.done_a_second > b.done_a_second; }},
    {"failed", [](const JobStatus& a, const JobStatus& b) { return a.attempts_failed_24h > b.attempts_failed_24h; }},
}};

/// What is shown of a job that an operator watches for.
bool differs(const JobStatus& a, const JobStatus& b) {
  return a.state != b.state || a.blocked != b.blocked || a.dead_letters != b.dead_letters || a.runs_lost_24h != b.runs_lost_24h ||
         a.attempts_failed_24h != b.attempts_failed_24h;
}

class Top {
 public:
  Top(Context& context, Duration interval, int frames) : context_(context), interval_(interval), frames_(frames) {}

  void run() {
    context_.current_database();  // one that is away from the beginning ends the command with its reason
    const Screen screen;
    for (int frame = 0; ended == 0 && (frames_ == 0 || frame < frames_); ++frame) {
      if (!paused_) look();
      screen.draw(text(screen.terminal()));
      if (frames_ == 0 || frame + 1 < frames_) keys(screen);
    }
  }

 private:
  /// While PostgreSQL is away, what was seen last stays, and says how old it is.
  void look() {
    try {
      auto now = read_status(context_.database());
      if (status_) before_ = status_->jobs;
      status_ = std::move(now);
      seen_ = std::chrono::steady_clock::now();
      fault_.clear();
    } catch (const std::exception& error) {
      away_ = dynamic_cast<const DatabaseUnavailable*>(&error) != nullptr;
      fault_ = printable(error.what(), 300);
    }
  }

  void keys(const Screen& screen) {
    const auto next = std::chrono::steady_clock::now() + interval_;
    while (ended == 0) {
      const auto left = std::chrono::ceil<Duration>(next - std::chrono::steady_clock::now());
      if (left <= Duration(0)) return;
      switch (screen.key(left)) {
        case 'q': ended = 1; return;
        case 's': sorting_ = (sorting_ + 1) % kSortings.size(); break;
        case 'r': reversed_ = !reversed_; break;
        case 'p': paused_ = !paused_; break;
        case ' ': return;
        default: continue;
      }
      screen.draw(text(screen.terminal()));
    }
  }

  [[nodiscard]] std::string text(bool terminal) const {
    std::string text = shown_time(SystemClock().now()) + "  every " + format_duration(interval_) + ", by " + kSortings.at(sorting_).name +
                       (reversed_ ? " reversed" : "") + (paused_ ? "  PAUSED" : "") + "\n";
    if (terminal) text += "q quit  s sort  r reverse  p pause  space now    > changed since the last look\n";
    if (!fault_.empty()) {
      text += away_ ? "POSTGRESQL AWAY" : "NOT READ";
      if (status_) text += ", what follows is " + short_age(seconds_between(seen_, std::chrono::steady_clock::now())) + " old";
      text += ": " + fault_ + "\n";
    }
    if (!status_) return text;
    auto jobs = status_->jobs;
    std::stable_sort(jobs.begin(), jobs.end(), kSortings.at(sorting_).before);
    if (reversed_) std::reverse(jobs.begin(), jobs.end());
    for (auto& job : jobs) {
      const auto was = std::find_if(before_.begin(), before_.end(), [&](const auto& one) { return one.name == job.name; });
      const bool changed = !before_.empty() && (was == before_.end() || differs(*was, job));
      job.name = (changed ? "> " : "  ") + job.name;
    }
    const auto style = output_style();
    return text + status_head(*status_) + "\n" + status_table(jobs).text(style.width, style.colour) + status_foot(*status_);
  }

  Context& context_;
  const Duration interval_;
  const int frames_;  // 0: until it is ended
  std::optional<Status> status_;
  std::vector<JobStatus> before_;
  SteadyTime seen_{};
  std::string fault_;
  bool away_ = false;
  std::size_t sorting_ = 0;
  bool reversed_ = false, paused_ = false;
};

}  // namespace

void add_top(CLI::App& app, Context& context) {
  auto* top = app.add_subcommand("top", "status, again and again, until q or Ctrl-C: what changed is marked, keys sort and pause");
  auto interval = std::make_shared<int>(2);
  auto frames = std::make_shared<int>(0);
  top->add_option("--interval", *interval, "seconds between")->check(CLI::Range(1, 3600))->capture_default_str();
  top->add_option("--frames", *frames, "end after so many; 0: never")->check(CLI::Range(0, 1000000))->capture_default_str();
  top->callback([&context, interval, frames] { Top(context, std::chrono::seconds(*interval), *frames).run(); });
}

}  // namespace takt
