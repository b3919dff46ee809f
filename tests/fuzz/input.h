#pragma once
#include <cstdint>
#include <cstdlib>
#include <string_view>

/// Ends the process, so that the fuzzer keeps the input, if what must hold does not.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// Cuts an input into texts at its zero bytes, so that a corpus stays readable.
class Pieces {
 public:
  Pieces(const std::uint8_t* data, std::size_t size) : left_(reinterpret_cast<const char*>(data), size) {}
  std::string_view next() {
    const auto end = left_.find('\0');
    const auto piece = left_.substr(0, end);
    left_ = end == std::string_view::npos ? std::string_view{} : left_.substr(end + 1);
    return piece;
  }
  [[nodiscard]] std::string_view rest() const { return left_; }

 private:
  std::string_view left_;
};
