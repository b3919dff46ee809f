#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace takt {

/// An `sql` handler's statement as PostgreSQL gets it: $1 to $4 with their types, numbered without gaps, since a parameter
/// that is never used has no type.
struct BoundStatement {
  std::string sql;
  std::vector<int> parameters;         ///< which of 1 to 4 stands in each place
  std::optional<std::string> unknown;  ///< the first parameter that is none of these, as it is written
};

/// Leaves alone what PostgreSQL does not take for a parameter: strings of every form, dollar quotes, quoted names,
/// comments, and names that hold a $. Pure. The rules: PostgreSQL's documentation, "Lexical Structure".
BoundStatement bind_statement(std::string_view statement);

}  // namespace takt
