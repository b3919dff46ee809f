#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace takt {

/// Why a JSON text is not taken.
enum class JsonFault {
  malformed,  ///< not JSON (RFC 8259), or not UTF-8
  limit,      ///< U+0000, deeper than kMaxJsonDepth, a number too long, or printed larger than allowed
};
using ExactJson = std::variant<std::string, JsonFault>;

constexpr int kMaxJsonDepth = 100;

/// The text again without its white space, every number, text and key as it was written, in their order with their repeats: so
/// PostgreSQL makes the same jsonb of it as of `text`. Refused: U+0000, which jsonb cannot hold; numbers of more than 1,000
/// characters, the zeros of their exponents among them; and a text that PostgreSQL would print in more than `most` bytes.
/// Pure. Memory: twice the text.
ExactJson exact_json(std::string_view text, std::size_t most);

/// A takt.v1.JobTick in JSON, in which each item's payload is replaced by payloadJson: the exact text as base64, as protobuf
/// wants bytes. What protobuf makes of `payload` itself would pass through doubles. Limits as above, `most` for each payload.
ExactJson with_exact_payloads(std::string_view tick, std::size_t most);

/// What keeps jsonb from holding a text, and the byte at which it is. `limit` is U+0000 alone: how large and how deep a value and
/// its numbers may be is PostgreSQL's to say.
struct JsonRefusal {
  JsonFault fault;
  std::size_t at;
};
std::optional<JsonRefusal> json_refusal(std::string_view text);

}  // namespace takt
