#include <charconv>
#include <cstdio>

#include "core/db/database.h"

namespace takt {

namespace {

void append_quoted(std::string& literal, std::string_view text) {
  literal += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') literal += '\\';
    literal += c;
  }
  literal += '"';
}

template <typename Values, typename Append>
std::string array_literal(const Values& values, Append append) {
  std::string literal = "{";
  for (const auto& value : values) {
    if (literal.size() > 1) literal += ',';
    append(literal, value);
  }
  return literal + "}";
}

}  // namespace

Params& Params::add(double value) {
  char buffer[32];
  const int length = std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return add(std::string_view(buffer, static_cast<std::size_t>(length)));
}

Params& Params::add(Timestamp time) { return add(format_rfc3339(time)); }

Params& Params::add(const std::vector<std::int64_t>& values) {
  return add(array_literal(values, [](std::string& literal, std::int64_t value) { literal += std::to_string(value); }));
}

Params& Params::add(const std::vector<double>& values) {
  return add(array_literal(values, [](std::string& literal, double value) {
    char buffer[32];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, 6).ptr;
    literal.append(buffer, end);
  }));
}

Params& Params::add(const std::vector<std::string>& values) { return add(array_literal(values, append_quoted)); }

Params& Params::add(const std::vector<std::optional<std::string>>& values) {
  return add(array_literal(values, [](std::string& literal, const std::optional<std::string>& value) {
    if (value)
      append_quoted(literal, *value);
    else
      literal += "NULL";
  }));
}

}  // namespace takt
