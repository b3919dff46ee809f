#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/db/query.h"
#include "dlq/mend.h"

namespace takt {

/// Which dead letters. Empty members do not restrict.
struct LetterFilter {
  std::vector<std::string> ids;
  std::optional<std::string> job, reason, kind, state, text;  ///< text: in payload, error or key, ignoring case
  std::optional<Timestamp> since, until;                      ///< of death; since inclusive, until exclusive
  static constexpr auto fields() {
    return std::tuple(&LetterFilter::ids, &LetterFilter::job, &LetterFilter::reason, &LetterFilter::kind, &LetterFilter::state,
                      &LetterFilter::since, &LetterFilter::until, &LetterFilter::text);
  }
};

struct LetterRow {
  std::string id, kind, job, reason, error;
  std::optional<std::int64_t> item_id;
  int attempts = 0;
  Timestamp died_at;
  std::string state;
  std::optional<Timestamp> changed_at;
  std::optional<std::string> changed_by, key;
  static constexpr auto fields() {
    return std::tuple(Field("id", &LetterRow::id), Field("kind", &LetterRow::kind), Field("job", &LetterRow::job),
                      Field("reason", &LetterRow::reason), Field("error", &LetterRow::error), Field("item_id", &LetterRow::item_id),
                      Field("attempts", &LetterRow::attempts), Field("died_us", &LetterRow::died_at), Field("state", &LetterRow::state),
                      Field("changed_us", &LetterRow::changed_at), Field("changed_by", &LetterRow::changed_by),
                      Field("key", &LetterRow::key));
  }
};

/// Newest first, at most `limit`.
std::vector<LetterRow> list_letters(Database& database, const LetterFilter& filter, int limit);
/// The whole letter; nothing if there is no such letter.
std::vector<Part> letter_parts(Database& database, const std::string& id);

/// Ids of the letters that match and are still archived, oldest first, at most `limit`.
std::vector<std::string> open_letters(Database& database, const LetterFilter& filter, int limit);
std::int64_t count_open_letters(Database& database, const LetterFilter& filter);
/// Of whatever state the filter says.
std::int64_t count_letters(Database& database, const LetterFilter& filter);

std::optional<LetterToMend> letter_to_mend(Database& database, const std::string& id);

enum class Mended {
  edited,
  same,     ///< it held this already
  changed,  ///< somebody else was there meanwhile: it was edited, replayed, discarded or pruned
};
/// Replaces the letter's payload, which was `letter.payload`, and writes down who, how large both are and their digests: the
/// payloads themselves are no matter of the audit. Replaying takes the new one. Repeating it changes nothing.
Mended mend_letter(Database& database, const LetterToMend& letter, const std::string& payload, const std::string& who);

struct Replayed {
  int items = 0;
  int ticks = 0;
  int before = 0;  ///< they were replayed already, by somebody else perhaps
  /// Not replayed: its job is unknown, its key is another item's, its tick's id is another's, or it cannot be replayed.
  int refused = 0;
};

/// One transaction: the items are live again with no attempts spent, their ticks are in the outbox, and the letters are
/// marked with who and when. Repeating it replays nothing twice, and so do two operators at once.
Replayed replay_letters(Database& database, const std::vector<std::string>& ids, const std::string& who);
/// Why letters that were asked for are not replayed now, one line a reason, with one of them by name and how many are alike. One that was
/// replayed says when and by whom, and what became of its item.
std::vector<std::string> why_not_replayed(Database& database, const std::vector<std::string>& ids, bool also_replayed);
int discard_letters(Database& database, const std::vector<std::string>& ids, const std::string& who);

/// Removes letters that died before `age` ago, at most `batch`; returns how many.
int prune_letters(Database& database, Duration age, int batch);
std::int64_t count_prunable(Database& database, Duration age);

}  // namespace takt
