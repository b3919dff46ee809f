#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace takt {

std::string to_hex(std::string_view bytes);
std::string base64_encode(std::string_view bytes);
/// Standard alphabet with padding; anything else is refused.
std::optional<std::string> base64_decode(std::string_view text);

std::vector<std::string_view> split(std::string_view text, char separator);
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::string_view trim(std::string_view text);
std::string to_lower(std::string_view text);

/// At most `bytes` bytes, cut at a UTF-8 boundary, with "…" where something was cut; bytes that are not UTF-8 and
/// control characters become '?'. For error texts that come from outside.
std::string printable(std::string_view text, std::size_t bytes);

/// Well-formed UTF-8 (RFC 3629), which JSON and PostgreSQL insist on.
bool is_utf8(std::string_view text);

/// The known word nearest to `given` if it is near enough to be meant (edit distance at most 2, or the only one that begins so), else
/// empty.
std::string nearest(std::string_view given, const std::vector<std::string>& known);

}  // namespace takt
