#pragma once
#include <vector>

#include "core/db/database.h"
#include "dlq/letter.h"

namespace takt {

/// Stores letters in one statement; an id that is there already changes nothing. Items get every failed attempt's error
/// from their history. Returns how many were new. Committed when this returns.
int store_letters(Database& database, const std::vector<Letter>& letters);

}  // namespace takt
