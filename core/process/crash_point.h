#pragma once

namespace takt {

/// A place where a test may kill the process, between two effects whose order matters. Does nothing in takt itself;
/// tests/chaos/crash_point.cc, linked in its place, sends SIGKILL. Names: <service>.<where>, listed in docs/guarantees.md.
void crash_point(const char* name) noexcept;

}  // namespace takt
