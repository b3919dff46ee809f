#pragma once
#include <csignal>
#include <string>

namespace takt {

/// Signals that would end this process, or tell of its child, wait while this lives: they are taken by hand, or act afterwards.
/// For a process whose other threads take no signals.
class SignalsByHand {
 public:
  SignalsByHand();
  ~SignalsByHand();
  SignalsByHand(const SignalsByHand&) = delete;
  SignalsByHand& operator=(const SignalsByHand&) = delete;
  [[nodiscard]] const sigset_t& set() const { return set_; }
  [[nodiscard]] const sigset_t& before() const { return before_; }

 private:
  sigset_t set_{}, before_{};
};

/// A text in a file of a folder that this user alone can enter, for an editor to change. Both are gone with the object,
/// and with whatever else the editor left beside the file.
class LetterEditor {
 public:
  explicit LetterEditor(const std::string& text);
  ~LetterEditor();
  LetterEditor(const LetterEditor&) = delete;
  LetterEditor& operator=(const LetterEditor&) = delete;

  /// Runs $VISUAL, else $EDITOR, else vi, and returns what the file holds then. The command is split at spaces and is given to no
  /// shell; it sees none of Takt's environment variables, which hold secrets. Waits for as long as the person takes: SIGTERM and
  /// SIGHUP are passed on to the editor, and act on this process once the file is gone. Throws CommandFailed if the editor cannot be
  /// run or fails.
  std::string edit();

  /// Waits for a line on the terminal; false: the end of input. A signal that would end this process acts once the file is gone:
  /// CommandFailed then unwinds to there.
  [[nodiscard]] bool wait_for_enter() const;

 private:
  const SignalsByHand signals_;  // until after the folder is gone
  std::string folder_, file_;
};

/// What the file (or, for "-", standard input) holds. Throws CommandFailed if it cannot be read or has more than `most` bytes.
std::string read_bounded(const std::string& path, std::size_t most);

}  // namespace takt
