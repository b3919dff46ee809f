#include "cli/table.h"

#include <iostream>

namespace takt {

namespace {

std::string cell(const nlohmann::json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

/// Characters, not bytes, so that columns align with UTF-8 text.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }));
}

}  // namespace

void Table::print(bool json, const std::string& empty) const {
  if (json) {
    auto list = nlohmann::json::array();
    for (const auto& row : rows_) {
      auto object = nlohmann::json::object();
      for (std::size_t i = 0; i < columns_.size(); ++i) object[columns_[i]] = row[i];
      list.push_back(std::move(object));
    }
    std::cout << list.dump(2) << "\n";
    return;
  }
  if (rows_.empty()) {
    std::cout << empty << "\n";
    return;
  }
  std::vector<std::size_t> widths;
  for (const auto& name : columns_) widths.push_back(width(name));
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(cell(row[i])));
  }
  const auto line = [&](const auto& text_of) {
    std::string text;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::string value = text_of(i);
      text += value;
      if (i + 1 < columns_.size()) text.append(widths[i] - width(value) + 2, ' ');
    }
    std::cout << text << "\n";
  };
  line([&](std::size_t i) { return columns_[i]; });
  for (const auto& row : rows_) line([&](std::size_t i) { return cell(row[i]); });
}

std::string short_age(double seconds) {
  const auto s = static_cast<long long>(seconds);
  if (s < 60) return std::to_string(s) + "s";
  if (s < 3600) return std::to_string(s / 60) + "m " + std::to_string(s % 60) + "s";
  if (s < 86400) return std::to_string(s / 3600) + "h " + std::to_string(s / 60 % 60) + "m";
  return std::to_string(s / 86400) + "d " + std::to_string(s / 3600 % 24) + "h";
}

}  // namespace takt
