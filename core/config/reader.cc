#include "core/config/reader.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "core/tick/tick.h"

namespace takt {

namespace {

constexpr int kMaxDepth = 32;
constexpr int kMaxValues = 10'000;

std::string shown(const YAML::Node& node) {
  if (node.IsScalar()) return "\"" + printable(node.Scalar(), 60) + "\"";
  return node.IsMap() ? "a mapping" : node.IsSequence() ? "a list" : "nothing";
}

std::string compact(double value) {
  char buffer[32];
  const int length = std::snprintf(buffer, sizeof buffer, "%.10g", value);
  return {buffer, static_cast<std::size_t>(length)};
}

std::string range_of(const Field& field) {
  if (field.kind == FieldKind::duration || field.kind == FieldKind::durations) {
    return "a duration from " + format_duration(Duration(static_cast<std::int64_t>(field.min))) + " to " +
           format_duration(Duration(static_cast<std::int64_t>(field.max))) + ", such as 90s";
  }
  return std::string(field.kind == FieldKind::integer ? "a whole number" : "a number") + " from " + compact(field.min) + " to " +
         compact(field.max);
}

std::optional<bool> parse_boolean(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return std::nullopt;
}

}  // namespace

void Faults::add(const YAML::Mark& mark, const std::string& path, const std::string& what) {
  const int line = mark.line + 1;
  faults_.emplace_back(line, file_ + ":" + std::to_string(line) + ": " + (path.empty() ? "" : path + ": ") + what);
}

std::vector<std::string> Faults::sorted() const {
  auto copy = faults_;
  std::stable_sort(copy.begin(), copy.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> lines;
  lines.reserve(copy.size());
  for (auto& [line, text] : copy) lines.push_back(std::move(text));
  return lines;
}

SectionReader::SectionReader(const std::string& declared, const YAML::Node& node, std::string path, YAML::Mark parent, Faults& faults)
    : declared_(configuration_section(declared)), node_(node), path_(std::move(path)), mark_(parent), faults_(faults) {
  if (!node_.IsDefined() || node_.IsNull()) {
    node_.reset(YAML::Node(YAML::NodeType::Map));
  } else {
    if (!node_.Mark().is_null()) mark_ = node_.Mark();
    if (!node_.IsMap()) {
      faults_.add(mark_, path_, shown(node_) + " where a section (key: value) is needed");
      node_.reset(YAML::Node(YAML::NodeType::Map));
    }
  }
  check_keys();
}

void SectionReader::check_keys() {
  std::vector<std::string> known;
  for (const auto& field : declared_.fields) known.emplace_back(field.key);
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
    if (!seen.insert(key).second) {
      faults_.add(entry.first.Mark(), path(key), "given twice");
    } else if (std::find(known.begin(), known.end(), key) == known.end()) {
      const std::string meant = nearest(key, known);
      std::string all;
      for (const auto& name : known) all += (all.empty() ? "" : ", ") + name;
      faults_.add(entry.first.Mark(), path(printable(key, 60)),
                  "unknown field; " + (meant.empty() ? "known are " + all : "did you mean " + meant + "?"));
    }
  }
  for (const auto& field : declared_.fields) {
    if (field.fallback == nullptr && !seen.contains(field.key))
      faults_.add(mark_, path(field.key), std::string("missing; it is required: ") + field.doc);
  }
}

const Field& SectionReader::field(const char* key) const {
  for (const auto& field : declared_.fields) {
    if (std::string_view(field.key) == key) return field;
  }
  std::abort();  // a field is read that is not declared in fields.cc
}

YAML::Node SectionReader::node(const char* key) const {
  for (const auto& entry : node_) {
    if (entry.first.IsScalar() && entry.first.Scalar() == key) return entry.second;
  }
  return YAML::Node(YAML::NodeType::Undefined);
}

bool SectionReader::has(const char* key) const {
  const auto found = node(key);
  return found.IsDefined() && !found.IsNull();
}

YAML::Mark SectionReader::mark(const char* key) const { return has(key) ? node(key).Mark() : mark_; }

void SectionReader::fault(const char* key, const std::string& what) { faults_.add(mark(key), path(key), what); }

std::optional<std::string> SectionReader::scalar(const Field& field) {
  const auto given = node(field.key);
  if (!given.IsDefined() || given.IsNull()) {
    if (field.fallback == nullptr || *field.fallback == '\0') return std::nullopt;
    return field.fallback;
  }
  if (given.IsScalar() && is_utf8(given.Scalar())) return given.Scalar();
  fault(field.key, shown(given) + " where a single value is needed");
  return std::nullopt;
}

std::string SectionReader::text(const char* key) {
  const auto& declared = field(key);
  const auto given = scalar(declared);
  if (!given) return "";
  switch (declared.kind) {
    case FieldKind::choice: {
      const auto choices = split(declared.choices, '|');
      if (std::find(choices.begin(), choices.end(), *given) != choices.end()) return *given;
      std::string all;
      for (const auto choice : choices) all += (all.empty() ? "" : ", ") + std::string(choice);
      fault(key, "\"" + printable(*given, 60) + "\" is none of " + all);
      return std::string(choices.front());
    }
    case FieldKind::name:
      if (!is_name(*given)) fault(key, "\"" + printable(*given, 60) + "\" is not a name; use a-z 0-9 . _ -, at most 100 characters");
      return *given;
    default:
      if (static_cast<double>(given->size()) > declared.max) {
        fault(key, "longer than " + compact(declared.max) + " bytes");
      } else if (given->find('\0') != std::string::npos) {
        fault(key, "holds a NUL character");
      } else if (static_cast<double>(given->size()) < declared.min) {
        fault(key, "empty");
      }
      return *given;
  }
}

std::int64_t SectionReader::integer(const char* key) {
  const auto& declared = field(key);
  const auto given = scalar(declared);
  const std::string text = given.value_or(declared.fallback == nullptr || *declared.fallback == '\0' ? "0" : declared.fallback);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    fault(key, "\"" + printable(text, 60) + "\" is not a whole number; give " + range_of(declared));
    return static_cast<std::int64_t>(declared.min);
  }
  if (given && (static_cast<double>(value) < declared.min || static_cast<double>(value) > declared.max)) {
    fault(key, text + " is out of range; give " + range_of(declared));
  }
  return value;
}

double SectionReader::number(const char* key) {
  const auto& declared = field(key);
  const auto given = scalar(declared);
  const std::string text = given.value_or(declared.fallback);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    fault(key, "\"" + printable(text, 60) + "\" is not a number; give " + range_of(declared));
    return declared.min;
  }
  if (!(value >= declared.min && value <= declared.max)) {
    fault(key, text + (value < declared.min ? " is below " + compact(declared.min) : " is above " + compact(declared.max)) + "; give " +
                   range_of(declared));
  }
  return value;
}

std::optional<Duration> SectionReader::checked_duration(const Field& field, const std::string& given) {
  const auto value = parse_duration(given);
  if (!value) {
    fault(field.key, "\"" + printable(given, 60) + "\" is not a duration; give " + range_of(field));
  } else if (static_cast<double>(value->count()) < field.min || static_cast<double>(value->count()) > field.max) {
    fault(field.key, given + " is out of range; give " + range_of(field));
  }
  return value;
}

Duration SectionReader::duration(const char* key) { return optional_duration(key).value_or(Duration(0)); }

std::optional<Duration> SectionReader::optional_duration(const char* key) {
  const auto& declared = field(key);
  const auto given = scalar(declared);
  if (!given) return std::nullopt;
  return checked_duration(declared, *given);
}

std::optional<bool> SectionReader::optional_boolean(const char* key) {
  const auto given = scalar(field(key));
  if (!given) return std::nullopt;
  const auto value = parse_boolean(*given);
  if (!value) fault(key, "\"" + printable(*given, 60) + "\" is neither true nor false");
  return value;
}

bool SectionReader::boolean(const char* key) { return optional_boolean(key).value_or(false); }

std::vector<std::string> SectionReader::names(const char* key) {
  std::vector<std::string> result;
  if (!has(key)) return result;
  const auto given = node(key);
  if (!given.IsSequence()) {
    fault(key, shown(given) + " where a list of names is needed, such as [default, slow]");
    return result;
  }
  for (const auto& entry : given) {
    if (!entry.IsScalar() || !is_name(entry.Scalar())) {
      faults_.add(entry.Mark(), path(key), shown(entry) + " is not a name; use a-z 0-9 . _ -, at most 100 characters");
    } else {
      result.push_back(entry.Scalar());
    }
  }
  return result;
}

std::vector<std::string> SectionReader::texts(const char* key) {
  std::vector<std::string> result;
  if (!has(key)) return result;
  const auto given = node(key);
  if (!given.IsSequence() || given.size() > 1000) {
    fault(key, shown(given) + " where a list of at most 1000 texts is needed, such as [private, \"*.example.com\"]");
    return result;
  }
  for (const auto& entry : given) {
    if (!entry.IsScalar() || entry.Scalar().empty() || entry.Scalar().size() > 300)
      faults_.add(entry.Mark(), path(key), shown(entry) + " is not a text of 1 to 300 characters");
    else
      result.push_back(entry.Scalar());
  }
  return result;
}

std::vector<Duration> SectionReader::durations(const char* key) {
  std::vector<Duration> result;
  if (!has(key)) return result;
  const auto given = node(key);
  if (!given.IsSequence() || given.size() == 0 || given.size() > 100) {
    fault(key, shown(given) + " where a list of 1 to 100 durations is needed, such as [1m, 5m, 30m]");
    return result;
  }
  for (const auto& entry : given) {
    const auto value = entry.IsScalar() ? checked_duration(field(key), entry.Scalar()) : std::nullopt;
    if (!entry.IsScalar()) faults_.add(entry.Mark(), path(key), shown(entry) + " is not a duration; give " + range_of(field(key)));
    if (value) result.push_back(*value);
  }
  return result;
}

std::map<std::string, std::string> SectionReader::headers(const char* key) {
  std::map<std::string, std::string> result;
  if (!has(key)) return result;
  const auto given = node(key);
  if (!given.IsMap()) {
    fault(key, shown(given) + " where headers (Name: value) are needed");
    return result;
  }
  static const std::set<std::string> refused{
      "host",    "connection",     "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
      "upgrade", "content-length", "expect"};
  for (const auto& entry : given) {
    const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
    const auto at = entry.first.Mark();
    const bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
    });
    if (!token) {
      faults_.add(at, path(key), "\"" + printable(name, 60) + "\" is not a header name (RFC 9110, 5.6.2)");
    } else if (refused.contains(to_lower(name)) || to_lower(name).starts_with("webhook-")) {
      faults_.add(at, path(key), name + " is set by Takt and may not be given");
    } else if (!entry.second.IsScalar() || entry.second.Scalar().find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
      faults_.add(entry.second.Mark(), path(key) + "." + name, "a header's value is one line of text");
    } else {
      result[name] = entry.second.Scalar();
    }
  }
  return result;
}

std::string SectionReader::json(const char* key) {
  if (!has(key)) return field(key).fallback;
  try {
    return yaml_to_json(node(key));
  } catch (const std::invalid_argument& error) {
    fault(key, error.what());
    return "{}";
  }
}

namespace {

const std::string& storable(const std::string& text) {
  if (text.find('\0') != std::string::npos) throw std::invalid_argument("holds a NUL character, which PostgreSQL cannot store");
  if (!is_utf8(text)) throw std::invalid_argument("holds an escape that is no Unicode character");
  return text;
}

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

/// `left`: how many values may still come, since aliases can make a short file into a huge value.
std::string to_json(const YAML::Node& node, int depth, int& left) {
  if (depth > kMaxDepth) throw std::invalid_argument("nested more than 32 deep");
  if (--left < 0) throw std::invalid_argument("holds more than " + std::to_string(kMaxValues) + " values");
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null: return "null";
    case YAML::NodeType::Sequence: {
      std::string list = "[";
      for (const auto& entry : node) list += (list.size() > 1 ? "," : "") + to_json(entry, depth + 1, left);
      return list + "]";
    }
    case YAML::NodeType::Map: {
      std::string object = "{";
      for (const auto& entry : node) {
        if (!entry.first.IsScalar()) throw std::invalid_argument("has a key that is not a single value");
        object += (object.size() > 1 ? "," : "") + quoted(storable(entry.first.Scalar())) + ":" + to_json(entry.second, depth + 1, left);
      }
      return object + "}";
    }
    case YAML::NodeType::Scalar: break;
  }
  const std::string& text = storable(node.Scalar());
  if (node.Tag() == "!") return quoted(text);  // quoted: always text
  if (const auto boolean = parse_boolean(text)) return *boolean ? "true" : "false";
  // A number of JSON stays as it is written, to its last digit.
  if (text.find_first_not_of("-0123456789.eE+") == std::string::npos && !json_refusal(text)) return text;
  std::int64_t whole = 0;
  const auto* end = text.data() + text.size();
  if (const auto got = std::from_chars(text.data(), end, whole); got.ec == std::errc{} && got.ptr == end) return std::to_string(whole);
  double real = 0;
  if (const auto got = std::from_chars(text.data(), end, real); got.ec == std::errc{} && got.ptr == end && std::isfinite(real)) {
    return nlohmann::json(real).dump();
  }
  return quoted(text);
}

}  // namespace

std::string yaml_to_json(const YAML::Node& node) {
  int left = kMaxValues;
  return to_json(node, 0, left);
}

}  // namespace takt
