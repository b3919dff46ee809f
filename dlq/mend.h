#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace takt {

/// A dead letter as far as mending it needs it.
struct LetterToMend {
  std::string id;
  std::string kind;  ///< item, tick or message
  std::string job;
  std::string state;                   ///< archived, replayed or discarded
  std::string changed_by;              ///< who replayed or discarded it
  std::optional<std::string> payload;  ///< as PostgreSQL prints it; by this a change meanwhile is known
  std::string pretty;                  ///< the same over several lines, for an editor; its numbers stay as they are
};

struct MendFault {
  std::string text;
};

/// What the letter will hold: the text's exact JSON (core/text/exact_json.h), within the limits of an item's payload, or of a tick whose
/// id and job are the letter's. A fault says what is wrong, and where if it is not JSON. Pure.
std::variant<std::string, MendFault> mended_payload(const LetterToMend& letter, std::string_view text);

}  // namespace takt
