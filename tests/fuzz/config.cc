// takt.yaml: read, or refused with every fault's line.
#include <string>

#include "core/config/config.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  try {
    const auto config = parse_config(std::string(reinterpret_cast<const char*>(data), size), "takt.yaml");
    for (const auto& job : config.jobs) {
      // What is stored is read back as it was.
      const auto stored = job_to_json(job);
      require(job_to_json(job_from_json(job.name, stored)) == stored);
    }
  } catch (const ConfigError& error) {
    require(!error.faults().empty());
    for (const auto& fault : error.faults()) require(fault.starts_with("takt.yaml:"));
  }
  return 0;
}
