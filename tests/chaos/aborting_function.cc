// Stands in for cli/native_functions.cc in the binary takt-crashing: "aborting" aborts at an item with "poison", and fails
// at the first call of one with "slip". Each call is a line in the file that TAKT_CALLS_FILE names.
#include <cstdlib>
#include <fstream>
#include <string>

#include "cli/native_functions.h"

namespace takt {

namespace {

/// Notes this call; the number of calls of this item, in any process.
int note_call(const NativeItem& item) {
  const char* file = std::getenv("TAKT_CALLS_FILE");
  if (file == nullptr) return 1;
  const auto name = "item-" + std::to_string(item.id);
  std::ofstream(file, std::ios::app) << name + "\n" << std::flush;
  std::ifstream lines(file);
  int calls = 0;
  for (std::string line; std::getline(lines, line);) calls += line == name ? 1 : 0;
  return calls;
}

HandlerResult aborting(const NativeItem& item) {
  const int calls = note_call(item);
  if (item.payload.find("poison") != std::string_view::npos) std::abort();
  HandlerResult result;
  result.item_class = ItemClass::done;
  if (item.payload.find("slip") != std::string_view::npos && calls == 1) {
    result.item_class = ItemClass::error;
    result.reason = "slip";
  }
  return result;
}

}  // namespace

NativeFunctions native_functions() { return {{"aborting", aborting}}; }

}  // namespace takt
