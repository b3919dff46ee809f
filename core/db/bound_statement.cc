#include "core/db/bound_statement.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace takt {

namespace {

constexpr std::size_t kNone = std::string_view::npos;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'; }

/// Where each thing that is left alone ends; at the text's end if it has none of its own, which PostgreSQL then refuses.
class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  /// Behind what begins at `at` and holds no parameter, or `at` itself.
  [[nodiscard]] std::size_t skip(std::size_t at) const {
    const char c = text_[at];
    const char next = peek(at + 1);
    if (c == '\'' || c == '"') return quoted(at + 1, c);
    if (c == '-' && next == '-') return std::min(text_.find_first_of("\r\n", at), text_.size());
    if (c == '/' && next == '*') return block_comment(at + 2);
    if (c == '$' && !is_digit(next)) return dollar_quoted(at);
    if (begins_name(c)) return name_or_escapes(at);
    return at;
  }
  [[nodiscard]] std::size_t digits(std::size_t at) const {
    while (is_digit(peek(at))) ++at;
    return at;
  }

 private:
  [[nodiscard]] char peek(std::size_t at) const { return at < text_.size() ? text_[at] : '\0'; }
  [[nodiscard]] std::size_t behind(std::size_t found, std::size_t length) const { return found == kNone ? text_.size() : found + length; }

  /// A doubled quote ends one piece and begins the next.
  [[nodiscard]] std::size_t quoted(std::size_t at, char quote) const { return behind(text_.find(quote, at), 1); }

  [[nodiscard]] std::size_t block_comment(std::size_t at) const {
    for (int depth = 1; depth > 0; at += 2) {
      at = std::min(text_.find_first_of("/*", at), text_.size());
      if (at == text_.size()) return at;
      if (text_[at] == '/' && peek(at + 1) == '*')
        ++depth;
      else if (text_[at] == '*' && peek(at + 1) == '/')
        --depth;
      else
        --at;  // only one character is done with
    }
    return at;
  }

  [[nodiscard]] std::size_t name(std::size_t at) const {
    while (begins_name(peek(at)) || is_digit(peek(at)) || peek(at) == '$') ++at;
    return at;
  }

  [[nodiscard]] std::size_t dollar_quoted(std::size_t at) const {
    std::size_t end = at + 1;
    while (begins_name(peek(end)) || is_digit(peek(end))) ++end;
    if (peek(end) != '$') return at;
    const auto delimiter = text_.substr(at, end + 1 - at);
    return behind(text_.find(delimiter, end + 1), delimiter.size());
  }

  [[nodiscard]] std::size_t name_or_escapes(std::size_t at) const {
    const auto end = name(at);
    const bool escapes = end == at + 1 && (text_[at] == 'e' || text_[at] == 'E') && peek(end) == '\'';
    return escapes ? escaped(end + 1) : end;
  }

  /// E'…': a backslash takes the next character's meaning, also in the pieces that follow on lines of their own.
  [[nodiscard]] std::size_t escaped(std::size_t at) const {
    while (at < text_.size()) {
      const bool quote = text_[at] == '\'';
      if (text_[at] == '\\' || (quote && peek(at + 1) == '\'')) {
        at += 2;
      } else if (!quote) {
        ++at;
      } else if (const auto more = continued(at + 1); more != kNone) {
        at = more;
      } else {
        return at + 1;
      }
    }
    return text_.size();
  }

  /// Behind the quote that goes on with a string: after blanks and comments with a line's end among them.
  [[nodiscard]] std::size_t continued(std::size_t at) const {
    bool new_line = false;
    for (; at < text_.size(); ++at) {
      if (peek(at) == '-' && peek(at + 1) == '-') at = std::min(text_.find_first_of("\r\n", at), text_.size());
      if (!is_space(peek(at))) break;
      new_line = new_line || peek(at) == '\n' || peek(at) == '\r';
    }
    return new_line && peek(at) == '\'' ? at + 1 : kNone;
  }

  std::string_view text_;
};

}  // namespace

BoundStatement bind_statement(std::string_view statement) {
  constexpr std::array<const char*, 5> types{"", "jsonb", "text", "bigint", "integer"};
  const Lexer lexer(statement);
  BoundStatement bound;
  for (std::size_t at = 0; at < statement.size();) {
    const auto end = lexer.skip(at);
    const auto digits = statement[at] == '$' ? lexer.digits(at + 1) : at + 1;
    if (end != at || digits <= at + 1) {
      const auto behind = std::max(end, at + 1);
      bound.sql += statement.substr(at, behind - at);
      at = behind;
      continue;
    }
    std::size_t number = 0;  // stays 0 if it is too large
    std::from_chars(&statement[at + 1], statement.data() + digits, number);
    if (number >= 1 && number < types.size()) {
      auto place = std::find(bound.parameters.begin(), bound.parameters.end(), static_cast<int>(number));
      if (place == bound.parameters.end()) place = bound.parameters.insert(place, static_cast<int>(number));
      // In parentheses, so that what follows, such as ['key'], is not taken for a part of the type.
      bound.sql += "($" + std::to_string(place - bound.parameters.begin() + 1) + "::" + types[number] + ")";
    } else {
      if (!bound.unknown) bound.unknown = std::string(statement.substr(at, digits - at));
      bound.sql += statement.substr(at, digits - at);
    }
    at = digits;
  }
  return bound;
}

}  // namespace takt
