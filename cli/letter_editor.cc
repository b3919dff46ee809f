#include "cli/letter_editor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "cli/context.h"
#include "core/text/text.h"

extern char** environ;

namespace takt {

namespace {

constexpr std::size_t kMostBytes = 8 * 1024 * 1024;

std::string fault() { return std::strerror(errno); }

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ > STDERR_FILENO) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

std::vector<std::string> editor_command() {
  for (const char* variable : {"VISUAL", "EDITOR"}) {
    const char* value = std::getenv(variable);
    std::vector<std::string> words;
    for (const auto word : split(value == nullptr ? "" : value, ' ')) {
      if (!word.empty()) words.emplace_back(word);
    }
    if (!words.empty()) return words;
  }
  if (::isatty(STDIN_FILENO) == 0) throw UsageError("there is no terminal, and neither VISUAL nor EDITOR is set: give --payload or --set");
  return {"vi"};
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  result.reserve(words.size() + 1);
  for (auto& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_for_editor() {
  std::vector<std::string> kept;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with("TAKT_")) kept.emplace_back(*variable);
  }
  return kept;
}

/// Runs the command and waits; returns its status as waitpid gives it.
int run(std::vector<std::string> command, const SignalsByHand& signals) {
  auto environment = environment_for_editor();
  const auto arguments = pointers(command), variables = pointers(environment);
  const pid_t child = ::fork();
  if (child < 0) throw CommandFailed("cannot start the editor: " + fault());
  if (child == 0) {
    static_cast<void>(std::signal(SIGPIPE, SIG_DFL));
    ::sigprocmask(SIG_SETMASK, &signals.before(), nullptr);
    ::execvpe(arguments[0], arguments.data(), variables.data());
    ::_exit(127);
  }
  int ended_by = 0;
  while (true) {
    int status = 0;
    if (::waitpid(child, &status, WNOHANG) == child) {
      if (ended_by != 0) static_cast<void>(::raise(ended_by));  // blocked: it acts once the file is gone
      return status;
    }
    siginfo_t info{};
    const int signal = ::sigwaitinfo(&signals.set(), &info);
    // SIGINT and SIGQUIT come from the terminal, which has told the editor as well.
    if (signal == SIGTERM || signal == SIGHUP) {
      ended_by = signal;
      ::kill(child, signal);
    }
  }
}

std::string folder_for_letters() {
  const char* given = std::getenv("TMPDIR");
  std::string path = std::string(given != nullptr && *given != '\0' ? given : "/tmp") + "/takt-letter-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) throw CommandFailed("cannot make a folder for the letter, " + path + ": " + fault());
  return path;
}

void remove_folder(const std::string& folder) {
  std::error_code fault;
  std::filesystem::remove_all(folder, fault);
}

void write_private(const std::string& path, std::string_view text) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (file.get() < 0) throw CommandFailed("cannot write " + path + ": " + fault());
  while (!text.empty()) {
    const auto written = ::write(file.get(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw CommandFailed("cannot write " + path + ": " + fault());
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

SignalsByHand::SignalsByHand() {
  static_cast<void>(std::signal(SIGCHLD, SIG_DFL));  // ignored by whoever started this, an editor's end would never be heard
  ::sigemptyset(&set_);
  for (const int signal : {SIGCHLD, SIGTERM, SIGHUP, SIGINT, SIGQUIT}) ::sigaddset(&set_, signal);
  ::sigprocmask(SIG_BLOCK, &set_, &before_);
}

SignalsByHand::~SignalsByHand() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

std::string read_bounded(const std::string& path, std::size_t most) {
  const Descriptor file(path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw CommandFailed("cannot read " + path + ": " + fault());
  std::string text;
  std::vector<char> part(64 * 1024);
  while (true) {
    const auto got = ::read(file.get(), part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw CommandFailed("cannot read " + path + ": " + fault());
    if (got == 0) return text;
    text.append(part.data(), static_cast<std::size_t>(got));
    if (text.size() > most) throw CommandFailed(path + " has more than " + std::to_string(most) + " bytes; a payload has at most 524288");
  }
}

LetterEditor::LetterEditor(const std::string& text) : folder_(folder_for_letters()), file_(folder_ + "/payload.json") {
  try {
    write_private(file_, text);
  } catch (...) {
    remove_folder(folder_);
    throw;
  }
}

LetterEditor::~LetterEditor() { remove_folder(folder_); }

std::string LetterEditor::edit() {
  auto command = editor_command();
  const std::string name = command.front();
  command.push_back(file_);
  const int status = run(std::move(command), signals_);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return read_bounded(file_, kMostBytes);
  if (WIFSIGNALED(status)) throw CommandFailed("the editor, " + name + ", was ended by signal " + std::to_string(WTERMSIG(status)));
  if (WEXITSTATUS(status) == 127) throw CommandFailed("the editor, " + name + ", cannot be run; set VISUAL or EDITOR to another");
  throw CommandFailed("the editor, " + name + ", ended with " + std::to_string(WEXITSTATUS(status)));
}

bool LetterEditor::wait_for_enter() const {
  sigset_t ending = signals_.set();
  ::sigdelset(&ending, SIGCHLD);
  const Descriptor told(::signalfd(-1, &ending, SFD_CLOEXEC));
  if (told.get() < 0) throw CommandFailed("cannot wait for signals: " + fault());
  pollfd either[] = {{STDIN_FILENO, POLLIN, 0}, {told.get(), POLLIN, 0}};
  while (true) {
    if (::poll(either, 2, -1) < 0) {
      if (errno == EINTR) continue;
      throw CommandFailed("cannot wait for an answer: " + fault());
    }
    if (either[1].revents != 0) {
      signalfd_siginfo info{};
      if (::read(told.get(), &info, sizeof(info)) == sizeof(info)) static_cast<void>(::raise(static_cast<int>(info.ssi_signo)));
      throw CommandFailed("nothing changed");
    }
    char part[256];
    const auto got = ::read(STDIN_FILENO, part, sizeof(part));
    if (got <= 0) return false;
    if (std::string_view(part, static_cast<std::size_t>(got)).ends_with('\n')) return true;
  }
}

}  // namespace takt
