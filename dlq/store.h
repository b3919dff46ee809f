#pragma once
#include <vector>

#include "core/db/database.h"
#include "dlq/letter.h"

namespace takt {

/// Stores letters in one statement; an id that is there already changes nothing. Items get every failed attempt's error
/// from their history. Returns how many were new. Committed when this returns.
int store_letters(Database& database, const std::vector<Letter>& letters);

struct LetterVolume {
  std::int64_t letters = 0;
  std::int64_t bytes = 0;  ///< of bodies and headers, as PostgreSQL holds them
};
/// What the archive keeps of messages that Takt did not sign: anybody who may publish to takt.dlx can bring any number of them. As the
/// quarantine (core/amqp/topology.h).
constexpr LetterVolume kMostUnsigned{10'000, 64LL * 1024 * 1024};

/// Removes the oldest of what Takt did not sign, so that no more than `most` is left of it; returns how many. Genuine letters are neither
/// looked at nor touched.
int bound_unsigned_letters(Database& database, const LetterVolume& most);

}  // namespace takt
