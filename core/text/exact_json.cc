// A reader of its own, since those of protobuf and nlohmann make doubles of numbers, or refuse what no double holds.
#include "core/text/exact_json.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/text/text.h"

namespace takt {

namespace {

constexpr std::size_t kMaxNumberCharacters = 1000;

/// Who hears a text's parts in their order, each as it is written, a string with its quotes. `printed`: in how many bytes
/// PostgreSQL prints it. False ends the reading: a limit is passed.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual bool scalar(std::string_view written, std::size_t printed) = 0;
  virtual bool key(std::string_view written, std::size_t printed) = 0;
  virtual bool open(char bracket) = 0;
  virtual bool close(char bracket) = 0;
};

/// Reads one text (RFC 8259), without recursion: memory a bit for each level that is open.
class Reader {
 public:
  Reader(std::string_view text, Listener& listener) : text_(text), listener_(listener) {}

  std::optional<JsonRefusal> read() {
    const bool whole = value() && rest() && (skip_space(), at_ == text_.size());
    if (whole) return std::nullopt;
    return JsonRefusal{limit_ ? JsonFault::limit : JsonFault::malformed, at_};
  }

 private:
  [[nodiscard]] char next() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  [[nodiscard]] bool digit() const { return next() >= '0' && next() <= '9'; }
  bool take(char c) {
    if (next() != c) return false;
    ++at_;
    return true;
  }
  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }
  bool told(bool taken) {
    limit_ = limit_ || !taken;
    return taken;
  }

  /// What follows the first value's beginning, until every bracket is closed.
  bool rest() {
    while (!objects_.empty()) {
      const bool empty = std::exchange(opened_, false);
      skip_space();
      const char end = objects_.back() ? '}' : ']';
      if (take(end)) {
        objects_.pop_back();
        if (!told(listener_.close(end))) return false;
      } else if (!(empty || take(',')) || (objects_.back() && !key()) || !value()) {
        return false;
      }
    }
    return true;
  }

  /// A scalar, or the beginning of an object or array.
  bool value() {
    skip_space();
    const std::size_t from = at_;
    switch (next()) {
      case '{':
      case '[':
        objects_.push_back(next() == '{');
        opened_ = true;
        return told(listener_.open(text_[at_++]));
      case '"': {
        std::size_t printed = 0;
        return string(printed) && told(listener_.scalar(text_.substr(from, at_ - from), printed));
      }
      case 't': return literal("true");
      case 'f': return literal("false");
      case 'n': return literal("null");
      default: return number() && told(listener_.scalar(text_.substr(from, at_ - from), at_ - from));
    }
  }

  bool literal(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return told(listener_.scalar(word, word.size()));
  }

  bool digits() {
    if (!digit()) return false;
    while (digit()) ++at_;
    return true;
  }
  bool number() {
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    if (!take('e') && !take('E')) return true;
    if (!take('+')) take('-');
    return digits();
  }

  bool key() {
    skip_space();
    const std::size_t from = at_;
    std::size_t printed = 0;
    if (next() != '"' || !string(printed)) return false;
    const auto written = text_.substr(from, at_ - from);
    skip_space();
    return take(':') && told(listener_.key(written, printed));
  }

  bool string(std::size_t& printed) {
    const std::size_t from = at_++;
    printed = 2;
    while (!take('"')) {
      if (at_ >= text_.size() || static_cast<unsigned char>(next()) < 0x20) return false;
      if (next() == '\\') {
        if (!escape(printed)) return false;
      } else {
        ++at_;
        ++printed;
      }
    }
    if (is_utf8(text_.substr(from, at_ - from))) return true;
    at_ = from;
    return false;
  }

  bool escape(std::size_t& printed) {
    const char kind = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
    if (kind != 'u') {
      if (kind == '\0' || !std::strchr("\"\\/bfnrt", kind)) return false;
      at_ += 2;
      printed += kind == '/' ? 1 : 2;
      return true;
    }
    const int unit = code_unit();
    if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return false;
    if (unit == 0) return told(false);
    at_ += 6;
    if (unit < 0xD800 || unit >= 0xE000) {
      printed += bytes_of(unit);
      return true;
    }
    const int second = code_unit();  // of a surrogate pair
    if (second < 0xDC00 || second >= 0xE000) return false;
    at_ += 6;
    printed += 4;
    return true;
  }
  /// Of \uXXXX at this place; -1 if there is none.
  [[nodiscard]] int code_unit() const {
    int unit = -1;
    const auto written = text_.substr(at_, 6);
    if (written.size() < 6 || !written.starts_with("\\u")) return -1;
    const auto got = std::from_chars(written.data() + 2, written.data() + 6, unit, 16);
    return got.ec == std::errc{} && got.ptr == written.data() + 6 && written[2] != '-' ? unit : -1;
  }
  static std::size_t bytes_of(int unit) {
    if (unit == '"' || unit == '\\' || unit == '\b' || unit == '\f' || unit == '\n' || unit == '\r' || unit == '\t') return 2;
    return unit < 0x20 ? 6 : unit < 0x80 ? 1 : unit < 0x800 ? 2 : 3;
  }

  const std::string_view text_;
  Listener& listener_;
  std::size_t at_ = 0;
  std::vector<bool> objects_;  // of each level that is open, whether it is an object
  bool opened_ = false;        // the innermost level was opened just now
  bool limit_ = false;
};

/// Writes what it hears, and counts what PostgreSQL would print.
class ExactWriter : public Listener {
 public:
  explicit ExactWriter(std::size_t most) : most_(most) {}

  bool scalar(std::string_view written, std::size_t printed) override {
    const bool number = written[0] == '-' || (written[0] >= '0' && written[0] <= '9');
    if (number && !count_number(written)) return false;
    separate();
    text_ += written;
    return count(printed);
  }
  bool key(std::string_view written, std::size_t printed) override {
    separate();
    text_ += written;
    text_ += ':';
    return count(printed + 2);  // PostgreSQL puts a space behind a colon
  }
  bool open(char bracket) override {
    separate();
    text_ += bracket;
    return ++depth_ <= kMaxJsonDepth && count(1);
  }
  bool close(char bracket) override {
    text_ += bracket;
    --depth_;
    return count(1);
  }

  [[nodiscard]] int depth() const { return depth_; }
  std::string take() { return std::move(text_); }

 private:
  void separate() {
    if (!text_.empty() && text_.back() != '{' && text_.back() != '[' && text_.back() != ':') {
      text_ += ',';
      printed_ += 2;  // and behind a comma
    }
  }
  bool count(std::size_t bytes) {
    printed_ += bytes;
    return printed_ <= most_;
  }
  /// PostgreSQL prints no exponents, but all their zeros: what is taken must be so again once it is printed.
  bool count_number(std::string_view written) {
    if (written.size() > kMaxNumberCharacters) return false;
    const auto exponent = written.find_first_of("eE");
    if (exponent == std::string_view::npos) return true;
    int shift = 0;
    const auto* from = written.data() + exponent + (written[exponent + 1] == '+' ? 2 : 1);
    if (std::from_chars(from, written.data() + written.size(), shift).ec != std::errc{}) return false;
    const auto zeros = static_cast<std::size_t>(std::abs(static_cast<long>(shift)));
    return written.size() + zeros <= kMaxNumberCharacters && count(zeros);
  }

  const std::size_t most_;
  std::string text_;
  std::size_t printed_ = 0;
  int depth_ = 0;
};

/// Writes a tick's document through, but for each items[].payload, which goes to a writer of its own.
class TickWriter final : public ExactWriter {
 public:
  explicit TickWriter(std::size_t most_payload) : ExactWriter(kUnbounded), most_payload_(most_payload) {}

  bool scalar(std::string_view written, std::size_t printed) override {
    return payload_ ? payload_->scalar(written, printed) && ended() : ExactWriter::scalar(written, printed);
  }
  bool open(char bracket) override {
    if (payload_) return payload_->open(bracket);
    if (bracket == '[' && depth() == 1) in_items_ = last_key_ == "items";
    return ExactWriter::open(bracket);
  }
  bool close(char bracket) override {
    if (payload_) return payload_->close(bracket) && ended();
    if (bracket == ']' && depth() == 2) in_items_ = false;
    return ExactWriter::close(bracket);
  }
  bool key(std::string_view written, std::size_t printed) override {
    if (payload_) return payload_->key(written, printed);
    last_key_ = nlohmann::json::parse(written).get<std::string>();  // as protobuf reads it, without escapes
    if (in_items_ && depth() == kItemDepth && last_key_ == "payload") {
      payload_.emplace(most_payload_);
      return true;
    }
    return ExactWriter::key(written, printed);
  }

 private:
  static constexpr std::size_t kUnbounded = static_cast<std::size_t>(-1) / 2;  // the message itself is bounded
  static constexpr int kItemDepth = 3;                                         // document, items, item

  /// After a part of a payload: if it was the last, the payload is written as bytes.
  bool ended() {
    if (payload_->depth() > 0) return true;
    const std::string bytes = '"' + base64_encode(payload_->take()) + '"';
    payload_.reset();
    return ExactWriter::key("\"payloadJson\"", 0) && ExactWriter::scalar(bytes, bytes.size());
  }

  const std::size_t most_payload_;
  std::string last_key_;
  bool in_items_ = false;
  std::optional<ExactWriter> payload_;  // while one is being written
};

class Nobody final : public Listener {
 public:
  bool scalar(std::string_view /*written*/, std::size_t /*printed*/) override { return true; }
  bool key(std::string_view /*written*/, std::size_t /*printed*/) override { return true; }
  bool open(char /*bracket*/) override { return true; }
  bool close(char /*bracket*/) override { return true; }
};

ExactJson written(std::string_view text, ExactWriter& writer) {
  if (const auto refusal = Reader(text, writer).read()) return refusal->fault;
  return writer.take();
}

}  // namespace

ExactJson exact_json(std::string_view text, std::size_t most) {
  ExactWriter writer(most);
  return written(text, writer);
}

ExactJson with_exact_payloads(std::string_view tick, std::size_t most) {
  TickWriter writer(most);
  return written(tick, writer);
}

std::optional<JsonRefusal> json_refusal(std::string_view text) {
  Nobody nobody;
  return Reader(text, nobody).read();
}

}  // namespace takt
