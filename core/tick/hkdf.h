#pragma once
#include <cstddef>
#include <string_view>

#include "core/text/secret.h"

namespace takt {

/// HKDF-SHA256 (RFC 5869): `size` bytes, at most 8160, for the purpose that `info` names. Whoever holds them can tell neither
/// `key` nor the bytes of any other purpose. Throws std::runtime_error if OpenSSL does not do it.
Secret hkdf_sha256(const Secret& key, std::string_view salt, std::string_view info, std::size_t size);

}  // namespace takt
