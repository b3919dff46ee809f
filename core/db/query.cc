#include "core/db/query.h"

#include <nlohmann/json.hpp>

namespace takt {

namespace {

const char* name_of(ColumnKind kind) {
  switch (kind) {
    case ColumnKind::boolean: return "boolean";
    case ColumnKind::integer: return "integer";
    case ColumnKind::real: return "double precision";
    case ColumnKind::text: return "text";
  }
  return "";
}

}  // namespace

std::vector<std::string> detail::texts_of(std::string_view json) {
  if (json.empty()) return {};
  return nlohmann::json::parse(json).get<std::vector<std::string>>();
}

void require_columns(const Rows& rows, const char* statement, std::span<const ResultColumn> columns) {
  const auto refuse = [&](const std::string& what) {
    throw SchemaChanged(std::string("database: its schema is not this version's (") + statement + "): " + what, "42804");
  };
  if (rows.columns() != columns.size()) {
    refuse("its rows have " + std::to_string(rows.columns()) + " columns, and not " + std::to_string(columns.size()));
  }
  for (std::size_t i = 0; i < columns.size(); ++i) {
    if (rows.column_is(i, columns[i].name, columns[i].kind)) continue;
    refuse("its column " + std::to_string(i + 1) + ", \"" + rows.column_name(i) + "\", is not the " + name_of(columns[i].kind) + " \"" +
           columns[i].name + "\"");
  }
}

}  // namespace takt
