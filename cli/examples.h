#pragma once
#include <CLI/CLI.hpp>

namespace takt {

/// Gives each command its examples, below its help. Throws std::logic_error for a command that has none, or for examples of a command
/// that is not there.
void add_examples(CLI::App& app);

}  // namespace takt
