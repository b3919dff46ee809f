#pragma once
#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/db/database.h"

// Statements whose requests and rows have names. A request and a row are structs, each with a function that lists its members:
//
// clang-format off
//   struct Renewal { std::string holder; Duration lease;
//                    static constexpr auto fields() { return std::tuple(&Renewal::holder, &Renewal::lease); } };
//   struct Heard { std::int64_t term;
//                  static constexpr auto fields() { return std::tuple(Field("term", &Heard::term)); } };
//   constexpr Query<Renewal, Heard> kRenew{"renew", "UPDATE … WHERE holder = $1 … $2 * interval '1 ms' RETURNING term"};
//   for (const auto& heard : query(database, kRenew, {holder, lease})) …
// clang-format on
//
// A request's members are $1, $2, … in the order of its fields(); a row's are the columns of its result, whose names and types are
// compared with each result: a column that a migration moved is an error, and not a wrong value.
namespace takt {

/// Durations (in milliseconds) and times (in Unix microseconds) are integers.
struct ResultColumn {
  const char* name;
  ColumnKind kind;
};

/// A member of a row, and the column that it is read from.
template <typename Row, typename T>
struct Field {
  using Value = T;
  constexpr Field(const char* column, T Row::*of) : name(column), member(of) {}
  const char* name;
  T Row::*member;
};

struct NoRequest {
  static constexpr auto fields() { return std::tuple(); }
};
/// Of a statement that returns nothing.
struct NoRow {
  static constexpr auto fields() { return std::tuple(); }
};

/// Of a statement with one parameter.
template <typename T>
struct One {
  T value{};
  static constexpr auto fields() { return std::tuple(&One::value); }
};

/// Of a statement that asks one question, answered in its column "is_so".
struct Answer {
  bool is_so = false;
  static constexpr auto fields() { return std::tuple(Field("is_so", &Answer::is_so)); }
};

/// Of a statement that counts, in its column "count".
struct Count {
  std::int64_t count = 0;
  static constexpr auto fields() { return std::tuple(Field("count", &Count::count)); }
};

/// One part of one thing that is shown whole, of the columns "name", "pretty" and "value": both JSON as PostgreSQL writes it, so that
/// every digit of a payload stays. Without a value: null.
struct Part {
  std::string name;
  std::optional<std::string> pretty, value;
  static constexpr auto fields() {
    return std::tuple(Field("name", &Part::name), Field("pretty", &Part::pretty), Field("value", &Part::value));
  }
};

template <typename Request, typename Row>
struct Query {
  const char* name;  ///< under which it is prepared
  const char* sql;
  [[nodiscard]] constexpr Statement statement() const { return {name, sql}; }
};

namespace detail {

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <typename T>
constexpr ColumnKind kind_of() {
  if constexpr (IsOptional<T>::value) {
    return kind_of<typename T::value_type>();
  } else if constexpr (std::same_as<T, bool>) {
    return ColumnKind::boolean;
  } else if constexpr (std::same_as<T, double>) {
    return ColumnKind::real;
  } else if constexpr (std::same_as<T, std::string> || std::same_as<T, std::vector<std::string>>) {
    return ColumnKind::text;
  } else {
    static_assert(std::integral<T> || std::same_as<T, Duration> || std::same_as<T, Timestamp>, "no column is read as this type");
    return ColumnKind::integer;
  }
}

/// The texts in a JSON array.
std::vector<std::string> texts_of(std::string_view json);

/// NULL is an empty optional, an empty text, zero or false. A list of texts is read from a JSON array.
template <typename T>
T value_of(const std::optional<std::string_view>& cell) {
  if constexpr (IsOptional<T>::value) {
    return cell ? T(value_of<typename T::value_type>(cell)) : T();
  } else if constexpr (std::same_as<T, bool>) {
    return cell == "t";
  } else if constexpr (std::same_as<T, double>) {
    return real_of(cell.value_or(""));
  } else if constexpr (std::same_as<T, std::string>) {
    return std::string(cell.value_or(""));
  } else if constexpr (std::same_as<T, std::vector<std::string>>) {
    return texts_of(cell.value_or(""));
  } else if constexpr (std::same_as<T, Timestamp>) {
    return from_unix_us(integer_of(cell.value_or("")));
  } else if constexpr (std::same_as<T, Duration>) {
    return Duration(integer_of(cell.value_or("")));
  } else {
    return static_cast<T>(integer_of(cell.value_or("")));
  }
}

template <typename Request>
Params params_of(const Request& request) {
  return std::apply([&](auto... members) { return Params::of(request.*members...); }, Request::fields());
}

template <typename Row>
constexpr auto columns_of() {
  return std::apply(
      [](const auto&... fields) {
        return std::array<ResultColumn, sizeof...(fields)>{
            ResultColumn{fields.name, kind_of<typename std::remove_cvref_t<decltype(fields)>::Value>()}...};
      },
      Row::fields());
}

template <typename Row>
std::vector<Row> rows_of(const Rows& rows) {
  std::vector<Row> result(rows.size());
  std::array<std::optional<std::string_view>, std::tuple_size_v<decltype(Row::fields())>> cells;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows.cells(i, cells);
    std::size_t column = 0;
    const auto read = [&](const auto& field) {
      using Value = typename std::remove_cvref_t<decltype(field)>::Value;
      result[i].*field.member = value_of<Value>(cells[column++]);
    };
    std::apply([&](const auto&... fields) { (read(fields), ...); }, Row::fields());
  }
  return result;
}

}  // namespace detail

/// Throws SchemaChanged, which names the column, where a result has others than a statement's rows are read from.
void require_columns(const Rows& rows, const char* statement, std::span<const ResultColumn> columns);

/// Reads a statement's result. Throws SchemaChanged.
template <typename Request, typename Row>
std::vector<Row> read(const Query<Request, Row>& statement, const Rows& rows) {
  static constexpr auto kColumns = detail::columns_of<Row>();
  require_columns(rows, statement.name, kColumns);
  return detail::rows_of<Row>(rows);
}

/// The same of a database, which is not usable for a while then.
template <typename Request, typename Row>
std::vector<Row> read(Database& database, const Query<Request, Row>& statement, const Rows& rows) {
  try {
    return read(statement, rows);
  } catch (const SchemaChanged&) {
    database.schema_differs();
    throw;
  }
}

/// Within a transaction, or on a connection.
template <typename Request, typename Row>
std::vector<Row> query(Session& on, const Query<Request, Row>& statement, const std::type_identity_t<Request>& request = {}) {
  return read(statement, on.exec(statement.statement(), detail::params_of(request)));
}

// As Database's exec(), exec_retrying() and exec_divisible() are.
template <typename Request, typename Row>
std::vector<Row> query(Database& database, const Query<Request, Row>& statement, const std::type_identity_t<Request>& request = {}) {
  return read(database, statement, database.exec(statement.statement(), detail::params_of(request)));
}
template <typename Request, typename Row>
std::vector<Row> query_retrying(Database& database, const Query<Request, Row>& statement, const std::type_identity_t<Request>& request = {},
                                int tries = Database::kTries) {
  return read(database, statement, database.exec_retrying(statement.statement(), detail::params_of(request), tries));
}
template <typename Request, typename Row>
std::vector<Row> query_divisible(Database& database, const Query<Request, Row>& statement,
                                 const std::type_identity_t<Request>& request = {}) {
  return read(database, statement, database.exec_divisible(statement.statement(), detail::params_of(request)));
}
/// One that returns nothing: how many rows it wrote.
template <typename Request>
std::size_t execute(Database& database, const Query<Request, NoRow>& statement, const std::type_identity_t<Request>& request = {}) {
  return database.exec(statement.statement(), detail::params_of(request)).affected();
}
template <typename Request>
std::size_t execute_retrying(Database& database, const Query<Request, NoRow>& statement,
                             const std::type_identity_t<Request>& request = {}) {
  return database.exec_retrying(statement.statement(), detail::params_of(request)).affected();
}

}  // namespace takt
