#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/db/query.h"
#include "core/time/time.h"

namespace takt {

/// A column; `rank` 0 stays whatever the terminal's width, the highest goes first where there is no room.
struct Column {
  Column(const char* column_name, int column_rank = 0) : name(column_name), rank(column_rank) {}
  const char* name;
  int rank;
};

/// Rows for people (aligned columns, as wide as the terminal) or for programs (an array of objects), from the same values.
/// On a terminal, columns that say nothing in any row go first, then those of the highest rank; then the longest texts are cut.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<nlohmann::json> row) { rows_.push_back(std::move(row)); }
  /// To standard output. `empty` is what people read when there is no row.
  void print(bool json, const std::string& empty) const;
  /// The lines for people, for a terminal of so many columns; 0: without a bound. `colour`: states that need somebody are marked.
  [[nodiscard]] std::string text(std::size_t width, bool colour) const;

 private:
  [[nodiscard]] std::vector<std::size_t> fitting(std::vector<std::size_t>& widths, std::size_t width) const;

  std::vector<Column> columns_;
  std::vector<std::vector<nlohmann::json>> rows_;
};

/// One thing with all its parts, for people (a line a part, lists as tables) or for programs.
void print_parts(const std::vector<Part>& parts, bool json);

/// The same of an object: names and values, aligned. Nested values stay JSON in one line.
void print_object(const nlohmann::ordered_json& object, bool json);

/// How standard output is written to: the terminal's columns (0: no terminal, or --wide), and whether in colour (a terminal, and
/// neither NO_COLOR nor TERM=dumb).
struct OutputStyle {
  std::size_t width = 0;
  bool colour = false;
};
OutputStyle output_style();
/// The terminal's lines; 0: no terminal.
std::size_t output_rows();
/// --wide: as if there were no bound.
void print_wide();

/// A statement's row, as a table takes it: its fields in their order, what is absent as null.
template <typename Row>
std::vector<nlohmann::json> cells_of(const Row& row) {
  const auto cell = [](const auto& value) -> nlohmann::json {
    if constexpr (requires { value.has_value(); }) {
      return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
    } else {
      return value;
    }
  };
  return std::apply([&](const auto&... fields) { return std::vector<nlohmann::json>{cell(row.*fields.member)...}; }, Row::fields());
}

/// At most so many characters; what is cut ends with "…".
std::string cut(const std::string& text, std::size_t most);
/// "3s", "4m 10s", "2h 5m", "3d 4h".
std::string short_age(double seconds);
/// RFC 3339, UTC, milliseconds: every time that a command prints.
std::string shown_time(Timestamp time);

}  // namespace takt
