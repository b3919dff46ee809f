#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace takt {

/// Rows for people (aligned columns) or for programs (an array of objects), from the same values.
class Table {
 public:
  explicit Table(std::vector<std::string> columns) : columns_(std::move(columns)) {}
  void add(std::vector<nlohmann::json> row) { rows_.push_back(std::move(row)); }
  /// To standard output. `empty` is what people read when there is no row.
  void print(bool json, const std::string& empty) const;

 private:
  std::vector<std::string> columns_;
  std::vector<std::vector<nlohmann::json>> rows_;
};

/// "3s", "4m 10s", "2h 5m", "3d 4h".
std::string short_age(double seconds);

}  // namespace takt
