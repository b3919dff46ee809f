#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace takt {

/// Bytes that must not be shown. Has no stream operator and no formatter; wiped on destruction; moves, never copies.
/// Not synchronised: share it as const.
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::string bytes) : bytes_(std::move(bytes)) {}
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  Secret(Secret&& other) noexcept;
  Secret& operator=(Secret&& other) noexcept;
  ~Secret();

  /// Every use of this is a place to review.
  [[nodiscard]] const std::string& reveal() const { return bytes_; }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  [[nodiscard]] Secret clone() const { return Secret(bytes_); }

 private:
  void wipe();
  std::string bytes_;
};

/// Overwrites what `text` holds before it is freed.
void wipe(std::string& text);

}  // namespace takt
