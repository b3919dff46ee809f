#pragma once
#include <string>

#include "core/db/database.h"

namespace takt {

/// Throws UsageError if PostgreSQL could not store this as jsonb; `where` begins its text.
void check_json(const std::string& text, const std::string& where);

/// One JSON payload a line of a file, or of standard input ("-"), enqueued for `job` in sets, each its own transaction, two on
/// their way while the next is read; a set is 1,000 lines or 8 MiB, which bounds the memory. Progress on standard error, if
/// that is a terminal. Returns how many were stored. A file is judged whole before anything of it is stored. What is thrown
/// says which lines were not stored.
std::size_t enqueue_file(Database& database, const std::string& path, const std::string& job, int priority);

}  // namespace takt
