#pragma once
#include <span>
#include <string>

namespace takt {

enum class FieldKind {
  text,
  texts,
  name,
  integer,
  number,
  duration,
  boolean,
  choice,
  url,
  names,
  headers,
  json,
  section,
  sections,
  list,
  durations
};

/// One key of takt.yaml: the only place where its type, bounds, default and meaning are declared. The reader takes
/// bounds and default from here, and docs/configuration.md is printed from here.
struct Field {
  const char* key;
  FieldKind kind;
  double min;  ///< integers, numbers; durations in milliseconds; text: bytes
  double max;
  const char* fallback;  ///< as it would be written in the file; "" : empty; nullptr: required
  const char* choices;   ///< for choice: "a|b|c"
  const char* doc;
};

struct SectionDoc {
  const char* path;  ///< "jobs.<name>.handler.http"
  const char* doc;
  std::span<const Field> fields;
};

/// Every section of takt.yaml, in the order of the documentation.
std::span<const SectionDoc> configuration_sections();
const SectionDoc& configuration_section(const std::string& path);

/// docs/configuration.md.
std::string configuration_reference();

}  // namespace takt
