// An sql handler's statement. What is bound differs from what was written in its parameters alone, each of them is bound by
// its number, and bound once more it has the same: so nothing that was put in changes how the rest is read.
#include <array>
#include <cstdint>
#include <string>

#include "core/db/bound_statement.h"
#include "tests/fuzz/input.h"

namespace {

constexpr std::array<std::string_view, 5> kTypes{"", "jsonb", "text", "bigint", "integer"};

/// Takes `expected` off the front.
void take(std::string_view& text, std::string_view expected) {
  require(text.starts_with(expected));
  text.remove_prefix(expected.size());
}

/// The number at the front.
std::size_t take_number(std::string_view& text) {
  std::size_t number = 0;
  require(!text.empty() && text[0] >= '0' && text[0] <= '9');
  for (; !text.empty() && text[0] >= '0' && text[0] <= '9'; text.remove_prefix(1))
    number = 10 * number + static_cast<std::size_t>(text[0] - '0');
  return number;
}

void require_same_but_for_parameters(std::string_view written, const takt::BoundStatement& bound) {
  std::string_view sql = bound.sql;
  while (!written.empty()) {
    require(!sql.empty());
    if (written[0] == sql[0]) {
      written.remove_prefix(1);
      sql.remove_prefix(1);
      continue;
    }
    take(written, "$");
    take(sql, "($");
    const auto place = take_number(sql);
    require(place >= 1 && place <= bound.parameters.size());
    const auto number = take_number(written);
    require(number == static_cast<std::size_t>(bound.parameters[place - 1]));
    take(sql, "::");
    take(sql, kTypes.at(number));
    take(sql, ")");
  }
  require(sql.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view written(reinterpret_cast<const char*>(data), size);
  const auto bound = takt::bind_statement(written);
  require(bound.parameters.size() < kTypes.size());
  require_same_but_for_parameters(written, bound);
  const auto again = takt::bind_statement(bound.sql);
  require(again.unknown == bound.unknown);
  require(again.parameters.size() == bound.parameters.size());
  for (std::size_t i = 0; i < again.parameters.size(); ++i) require(again.parameters[i] == static_cast<int>(i) + 1);
  return 0;
}
