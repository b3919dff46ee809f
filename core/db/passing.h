#pragma once
#include "core/db/database.h"

namespace takt {

/// SQLSTATE check_violation: a row of no partition. Takt writes history that no CHECK looks at.
inline constexpr auto kNoPartition = "23514";

/// Whether the same statement may succeed in a while, though neither it nor what it was given is to blame: PostgreSQL ended it for
/// the sake of others, somebody holds a lock, resources are short, or a partition of history could not be made yet. Pure.
inline bool may_pass(const DatabaseError& error) {
  return error.retryable() || error.short_of_resources() || error.sqlstate() == kNoPartition;
}

}  // namespace takt
