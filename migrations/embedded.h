#pragma once
#include <span>
#include <string_view>

namespace takt {

/// One numbered step of the schema. Never edited once released: its checksum is recorded where it was applied.
/// Lines at its top that begin with "-- transaction:" or "-- oldest:" say how it is applied (migrations/README.md).
struct Migration {
  int version;
  std::string_view name;
  std::string_view sql;
};

/// Functions and views that belong together. Each is made with CREATE OR REPLACE; the whole file is applied again wherever its
/// checksum is not the one that was recorded.
struct FunctionFile {
  std::string_view name;
  std::string_view sql;
};

/// Every migration of this binary, ascending by version. Static storage; safe from any thread.
std::span<const Migration> embedded_migrations();
/// Every file of functions, in the order in which they are applied. Static storage; safe from any thread.
std::span<const FunctionFile> embedded_functions();

}  // namespace takt
