#pragma once
#include <string>
#include <string_view>
#include <variant>

namespace takt {

/// Why a JSON text is not taken.
enum class JsonFault {
  malformed,  ///< not JSON (RFC 8259), or not UTF-8
  limit,      ///< deeper than kMaxJsonDepth, a number or a text that jsonb cannot hold, or printed larger than allowed
};
using ExactJson = std::variant<std::string, JsonFault>;

constexpr int kMaxJsonDepth = 100;

/// The text again, compact, with every number's digits as they were written, and keys in their order with their repeats: so
/// PostgreSQL makes the same jsonb of it as of `text`. Refused: U+0000, which jsonb cannot hold; numbers beyond a double's
/// range, or of more than 1,000 characters; and a text that PostgreSQL would print in more than `most` bytes.
/// Pure. Memory: a few times the text.
ExactJson exact_json(std::string_view text, std::size_t most);

/// A takt.v1.JobTick in JSON, in which each item's payload is replaced by payloadJson: the exact text as base64, as protobuf
/// wants bytes. What protobuf makes of `payload` itself would pass through doubles. Limits as above, `most` for each payload.
ExactJson with_exact_payloads(std::string_view tick, std::size_t most);

}  // namespace takt
