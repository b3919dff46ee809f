// JSON texts, whose numbers and texts must stay as they are. The input twice: as a payload, and as that of a tick's inline item.
#include <nlohmann/json.hpp>
#include <variant>

#include "core/text/exact_json.h"
#include "core/tick/tick.h"
#include "tests/fuzz/input.h"

namespace {

constexpr std::size_t kMost = 2000;

/// What nlohmann's reader makes of a text, with each number as it is written.
class Parts final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string heard;
  int depth = 0, deepest = 0;
  bool nul = false, overflow = false;

  bool null() override { return part("N"); }
  bool boolean(bool value) override { return part(value ? "T" : "F"); }
  bool number_integer(number_integer_t value) override { return part(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return part(std::to_string(value)); }
  bool number_float(number_float_t /*value*/, const string_t& written) override { return part(written); }
  bool string(string_t& value) override { return text("\"", value); }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(std::size_t /*elements*/) override { return open("{"); }
  bool start_array(std::size_t /*elements*/) override { return open("["); }
  bool end_object() override { return close("}"); }
  bool end_array() override { return close("]"); }
  bool key(string_t& value) override { return text(":", value); }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/, const nlohmann::detail::exception& fault) override {
    constexpr int kBeyondADouble = 406;
    overflow = fault.id == kBeyondADouble;
    return false;
  }

 private:
  bool part(const std::string& what) {
    heard += what + '\n';
    return true;
  }
  bool text(const char* what, const std::string& value) {
    nul = nul || value.find('\0') != std::string::npos;
    return part(what + std::to_string(value.size()) + ' ' + value);
  }
  bool open(const char* bracket) {
    deepest = std::max(deepest, ++depth);
    return part(bracket);
  }
  bool close(const char* bracket) {
    --depth;
    return part(bracket);
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace takt;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Parts parts;
  // nlohmann's reader passes over a byte order mark, and takes a zero byte for the end.
  if (text.starts_with("\xef\xbb\xbf") || text.find('\0') != std::string_view::npos) {
    require(json_refusal(text).has_value());
    return 0;
  }
  const bool json = nlohmann::json::sax_parse(text.begin(), text.end(), &parts);
  const auto refusal = json_refusal(text);
  // The two readers agree, but where nlohmann's stops at a number that no double holds.
  if (json) require(!refusal == !parts.nul && (!refusal || refusal->fault == JsonFault::limit));
  if (!json && !parts.overflow) require(refusal.has_value());
  if (refusal) require(refusal->at <= size);

  const auto exact = exact_json(text, kMost);
  const auto* compact = std::get_if<std::string>(&exact);
  if (refusal) require(compact == nullptr);
  if (json && !parts.nul && parts.deepest <= kMaxJsonDepth && 8 * size < kMost && parts.heard.find_first_of("eE") == std::string::npos)
    require(compact != nullptr);
  if (compact != nullptr) {
    require(compact->size() <= size && parts.deepest <= kMaxJsonDepth);
    const auto again = exact_json(*compact, kMost);
    require(std::holds_alternative<std::string>(again) && std::get<std::string>(again) == *compact);
    Parts of_compact;
    if (json) require(nlohmann::json::sax_parse(*compact, &of_compact) && of_compact.heard == parts.heard);
  }

  // As a tick's payload: taken or refused as alone, and the same bytes; round it, nothing changes.
  const auto read = tick_from_json(R"({"items":[{"key":"a","payload":)" + std::string(text) + R"(},{"payload":7}],"job":"demo"})");
  if (compact != nullptr) {
    const auto& tick = std::get<v1::JobTick>(read);
    require(tick.items_size() == 2 && tick.items(0).payload_json() == *compact && !tick.items(0).has_payload());
    require(tick.items(0).key() == "a" && tick.items(1).payload_json() == "7" && tick.job() == "demo");
    const auto carried = tick_from_json("{\"items\":" + items_to_json(tick) + "}");
    require(std::get<v1::JobTick>(carried).items(0).payload_json() == *compact);
  }
  return 0;
}
