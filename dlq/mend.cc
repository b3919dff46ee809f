#include "dlq/mend.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/text/exact_json.h"
#include "core/text/text.h"
#include "core/tick/tick.h"

namespace takt {

namespace {

constexpr std::size_t kMaxFaultBytes = 300;
/// What a tick's message holds beside what is mended: its protobuf may not grow beyond a message through it.
constexpr std::size_t kTickHead = 1024;

/// "line 3, column 5: …", as nlohmann's parser sees it.
std::string place_of_fault(std::string_view text) {
  try {
    [[maybe_unused]] const auto whole = nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 3, column 5: what"
    const std::string what = error.what();
    const auto at = what.find("line ");
    return printable(at == std::string::npos ? what : what.substr(at), kMaxFaultBytes);
  }
  return "byte " + std::to_string(json_refusal(text)->at + 1);  // a byte order mark, or a zero byte
}

MendFault fault_of(JsonFault fault, std::string_view text, const std::string& what) {
  if (fault == JsonFault::malformed) return {what + " is not JSON: " + place_of_fault(text)};
  return {what + " is not taken: it has more than " + std::to_string(kMaxPayloadBytes) + " bytes as text, is nested deeper than " +
          std::to_string(kMaxJsonDepth) + ", or holds U+0000 or a number of more than 1,000 digits"};
}

std::variant<std::string, MendFault> mended_tick(const LetterToMend& letter, std::string_view text) {
  // First as JSON alone, so that a slip of the pen is told from a tick that is none.
  const auto json = exact_json(text, 2 * kMaxTickBytes);
  if (const auto* fault = std::get_if<JsonFault>(&json)) return fault_of(*fault, text, "the tick");
  const auto read = tick_from_json(text);
  if (const auto* reason = std::get_if<RejectReason>(&read)) {
    if (*reason == RejectReason::field_limit) return fault_of(JsonFault::limit, text, "a payload in the tick");
    return MendFault{
        "it is no takt.v1.JobTick: a field has another name or type (id, job, dueAt, batchSize, items, dryRun;"
        " of an item: payload, key, runAt, priority)"};
  }
  const auto& tick = std::get<v1::JobTick>(read);
  if (letter.id != "tick-" + tick.id() && letter.id != "broker-" + tick.id()) return MendFault{"a tick's id cannot be changed"};
  if (tick.job() != letter.job) return MendFault{"a tick's job cannot be changed: it is " + letter.job};
  if (!within_limits(tick) || tick.ByteSizeLong() + kTickHead > kMaxTickBytes) {
    return MendFault{
        "the tick is not taken: at most 1000 items and 1 MiB, keys of 512 characters, priorities of -100 to 100, times of"
        " 1970 to 9999"};
  }
  return tick_to_json(tick);
}

}  // namespace

std::variant<std::string, MendFault> mended_payload(const LetterToMend& letter, std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; })) {
    return MendFault{"the text is empty"};
  }
  if (letter.kind == "tick") return mended_tick(letter, text);
  auto exact = exact_json(text, kMaxPayloadBytes);
  if (const auto* fault = std::get_if<JsonFault>(&exact)) return fault_of(*fault, text, "the payload");
  return std::get<std::string>(std::move(exact));
}

}  // namespace takt
