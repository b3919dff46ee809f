#include "cli/table.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <numeric>

namespace takt {

namespace {

constexpr std::size_t kGap = 2;
constexpr std::size_t kShortest = 12;  // to which a text is cut
bool wide = false;

std::string cell(const nlohmann::json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

bool says_nothing(const nlohmann::json& value) {
  return value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty()) || (value.is_number() && value == 0);
}

bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }

/// Characters, not bytes, so that columns align with UTF-8 text.
std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

/// What needs somebody is red, what waits is yellow.
const char* colour_of(const std::string& text) {
  static const std::map<std::string, const char*, std::less<>> colours{{"failed", "31"}, {"dead", "31"},      {"blocked", "31"},
                                                                       {"silent", "31"}, {"not ready", "31"}, {"held", "33"},
                                                                       {"paused", "33"}, {"locked", "33"},    {"starting", "33"}};
  const auto found = colours.find(text);
  return found == colours.end() ? nullptr : found->second;
}

std::string painted(const std::string& text, const char* colour) {
  return colour == nullptr ? text : "\x1b[" + std::string(colour) + "m" + text + "\x1b[0m";
}

}  // namespace

std::string cut(const std::string& text, std::size_t most) {
  if (characters(text) <= most) return text;
  std::string shorter;
  std::size_t count = 0;
  for (const char c : text) {
    if (begins_character(c) && ++count == most) break;
    shorter += c;
  }
  return shorter + "…";
}

OutputStyle output_style() {
  if (::isatty(STDOUT_FILENO) == 0) return {};
  OutputStyle style;
  winsize size{};
  if (!wide && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) style.width = size.ws_col;
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  style.colour = (no_colour == nullptr || *no_colour == '\0') && terminal != nullptr && std::string_view(terminal) != "dumb";
  return style;
}

std::size_t output_rows() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_row : 0;
}

void print_wide() { wide = true; }

/// The columns that are shown, in order; `widths` are theirs as they fit.
std::vector<std::size_t> Table::fitting(std::vector<std::size_t>& widths, std::size_t width) const {
  std::vector<std::size_t> shown(columns_.size());
  std::iota(shown.begin(), shown.end(), 0U);
  const auto total = [&] {
    std::size_t sum = 0;
    for (const auto i : shown) sum += widths[i] + kGap;
    return sum - kGap;
  };
  const auto silent = [&](std::size_t i) {
    return std::all_of(rows_.begin(), rows_.end(), [i](const auto& row) { return says_nothing(row[i]); });
  };
  for (const bool only_silent : {true, false}) {
    while (total() > width) {
      auto worst = shown.end();
      for (auto it = shown.begin(); it != shown.end(); ++it) {
        if (columns_[*it].rank == 0 || (only_silent && !silent(*it))) continue;
        if (worst == shown.end() || columns_[*it].rank >= columns_[*worst].rank) worst = it;
      }
      if (worst == shown.end()) break;
      shown.erase(worst);
    }
  }
  while (total() > width) {
    const auto longest = *std::max_element(shown.begin(), shown.end(), [&](std::size_t a, std::size_t b) { return widths[a] < widths[b]; });
    if (widths[longest] <= kShortest) break;
    widths[longest] = std::max(kShortest, widths[longest] - std::min(widths[longest], total() - width));
  }
  return shown;
}

std::string Table::text(std::size_t width, bool colour) const {
  std::vector<std::size_t> widths;
  for (const auto& column : columns_) widths.push_back(characters(column.name));
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], characters(cell(row[i])));
  }
  std::vector<std::size_t> shown(columns_.size());
  std::iota(shown.begin(), shown.end(), 0U);
  if (width > 0) shown = fitting(widths, width);
  std::string text;
  const auto line = [&](const auto& text_of, const auto& paint) {
    for (const auto i : shown) {
      const std::string value = cut(text_of(i), widths[i]);
      text += paint(value);
      if (i != shown.back()) text.append(widths[i] - characters(value) + kGap, ' ');
    }
    text += '\n';
  };
  line([&](std::size_t i) { return std::string(columns_[i].name); },
       [&](const std::string& value) { return colour ? painted(value, "1") : value; });
  for (const auto& row : rows_) {
    line([&](std::size_t i) { return cell(row[i]); },
         [&](const std::string& value) { return colour ? painted(value, colour_of(value)) : value; });
  }
  if (const auto hidden = columns_.size() - shown.size(); hidden > 0) {
    text += "(" + std::to_string(hidden) + (hidden == 1 ? " column" : " columns") + " more with --wide)\n";
  }
  return text;
}

void Table::print(bool json, const std::string& empty) const {
  if (json) {
    auto list = nlohmann::json::array();
    for (const auto& row : rows_) {
      auto object = nlohmann::json::object();
      for (std::size_t i = 0; i < columns_.size(); ++i) object[columns_[i].name] = row[i];
      list.push_back(std::move(object));
    }
    std::cout << list.dump(2) << "\n";
    return;
  }
  if (rows_.empty()) {
    std::cout << empty << "\n";
    return;
  }
  const auto style = output_style();
  std::cout << text(style.width, style.colour);
}

namespace {

void print_list(const std::string& name, const nlohmann::ordered_json& list) {
  std::vector<Column> columns;
  for (const auto& [part, value] : list.front().items()) columns.emplace_back(part.c_str(), 0);
  Table table(columns);
  for (const auto& row : list) {
    std::vector<nlohmann::json> cells;
    for (const auto& column : columns) cells.push_back(row.contains(column.name) ? nlohmann::json(row.at(column.name)) : nlohmann::json());
    table.add(std::move(cells));
  }
  std::cout << "\n" << name << "\n";
  table.print(false, "");
}

std::string indented(std::string text, std::size_t by) {
  for (auto at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) text.insert(at + 1, by, ' ');
  return text;
}

}  // namespace

void print_parts(const std::vector<Part>& parts, bool json) {
  if (json) {
    std::cout << "{";
    for (const auto& part : parts) {
      std::cout << (&part == parts.data() ? "\n  " : ",\n  ") << nlohmann::json(part.name).dump() << ": "
                << (part.pretty ? indented(*part.pretty, 2) : "null");
    }
    std::cout << "\n}\n";
    return;
  }
  std::size_t longest = 0;
  for (const auto& part : parts) longest = std::max(longest, part.name.size());
  std::vector<std::pair<std::string, nlohmann::ordered_json>> lists;
  for (const auto& part : parts) {
    const std::string value = part.value.value_or("null");
    if (value.starts_with("[{")) {
      lists.emplace_back(part.name, nlohmann::ordered_json::parse(value));
      continue;
    }
    const std::string shown = value.starts_with('"')                             ? nlohmann::json::parse(value).get<std::string>()
                              : value == "null" || value == "[]"                 ? "-"
                              : value.starts_with('{') || value.starts_with('[') ? indented(part.pretty.value_or(""), longest + kGap)
                                                                                 : value;
    std::cout << part.name << std::string(longest - part.name.size() + kGap, ' ') << shown << "\n";
  }
  for (const auto& [name, list] : lists) print_list(name, list);
}

void print_object(const nlohmann::ordered_json& object, bool json) {
  if (json) {
    std::cout << object.dump(2) << "\n";
    return;
  }
  std::size_t longest = 0;
  for (const auto& [name, value] : object.items()) longest = std::max(longest, name.size());
  for (const auto& [name, value] : object.items())
    std::cout << name << std::string(longest - name.size() + kGap, ' ') << cell(value) << "\n";
}

std::string short_age(double seconds) {
  const auto s = static_cast<long long>(seconds);
  if (s < 60) return std::to_string(s) + "s";
  if (s < 3600) return std::to_string(s / 60) + "m " + std::to_string(s % 60) + "s";
  if (s < 86400) return std::to_string(s / 3600) + "h " + std::to_string(s / 60 % 60) + "m";
  return std::to_string(s / 86400) + "d " + std::to_string(s / 3600 % 24) + "h";
}

std::string shown_time(Timestamp time) {
  const auto ms = std::chrono::floor<std::chrono::milliseconds>(time);
  auto text = format_rfc3339(std::chrono::floor<std::chrono::seconds>(ms));
  const auto fraction = std::to_string(1000 + (ms - std::chrono::floor<std::chrono::seconds>(ms)).count()).substr(1);
  return text.insert(text.size() - 1, "." + fraction);
}

}  // namespace takt
