#pragma once
#include <yaml-cpp/yaml.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config/fields.h"
#include "core/time/time.h"

namespace takt {

/// Collects what is wrong, with file and line.
class Faults {
 public:
  explicit Faults(std::string file) : file_(std::move(file)) {}
  void add(const YAML::Mark& mark, const std::string& path, const std::string& what);
  [[nodiscard]] std::vector<std::string> sorted() const;

 private:
  std::string file_;
  std::vector<std::pair<int, std::string>> faults_;
};

/// One mapping of the file, read by its declared fields. Reports unknown, repeated, missing, mistyped and
/// out-of-range ones; after a fault the default is returned, so that reading goes on and all faults are found.
class SectionReader {
 public:
  /// `node` may be undefined: then every field has its default, and required ones are reported at `parent`.
  SectionReader(const std::string& declared, const YAML::Node& node, std::string path, YAML::Mark parent, Faults& faults);

  std::string text(const char* key);
  std::int64_t integer(const char* key);
  double number(const char* key);
  Duration duration(const char* key);
  std::optional<Duration> optional_duration(const char* key);
  bool boolean(const char* key);
  std::optional<bool> optional_boolean(const char* key);
  std::vector<std::string> names(const char* key);
  std::vector<std::string> texts(const char* key);
  std::vector<Duration> durations(const char* key);
  std::map<std::string, std::string> headers(const char* key);
  std::string json(const char* key);

  [[nodiscard]] bool has(const char* key) const;
  [[nodiscard]] YAML::Node node(const char* key) const;
  [[nodiscard]] std::string path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  [[nodiscard]] YAML::Mark mark(const char* key) const;
  [[nodiscard]] YAML::Mark mark() const { return mark_; }
  void fault(const char* key, const std::string& what);

 private:
  [[nodiscard]] const Field& field(const char* key) const;
  /// The scalar at `key`, or the default; nullopt after a fault or for an empty default.
  std::optional<std::string> scalar(const Field& field);
  std::optional<Duration> checked_duration(const Field& field, const std::string& given);
  void check_keys();

  const SectionDoc& declared_;
  YAML::Node node_;
  std::string path_;
  YAML::Mark mark_;
  Faults& faults_;
};

/// Throws std::invalid_argument for what JSON or PostgreSQL cannot hold.
std::string yaml_to_json(const YAML::Node& node);

}  // namespace takt
