// Durations and times: what is read is written so that it is read as the same.
#include "core/time/time.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto duration = parse_duration(text)) require(parse_duration(format_duration(*duration)) == duration);
  if (const auto time = parse_rfc3339(text)) require(parse_rfc3339(format_rfc3339(*time)) == time);
  return 0;
}
