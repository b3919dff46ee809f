#pragma once
#include <cstddef>

namespace takt {

/// Gives back the memory that only the start of this process needed: what malloc holds unused, and the pages of programs and
/// libraries, most of which were touched once, by the dynamic linker and by initialisers, each with fifteen neighbours that
/// the kernel maps along. What is used again is mapped again from the page cache, at a minor fault for 64 KiB.
/// Only mappings of files that this process has not written to are touched, so nothing can be lost (docs/decisions/0017).
/// Once a process, when it has settled. Returns the bytes of such mappings that were resident. Any thread.
std::size_t give_back_start_pages();

}  // namespace takt
