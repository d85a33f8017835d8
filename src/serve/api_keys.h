// What: the keys that may use the API. Only their SHA-256 is kept.
// Threads: immutable after loading.
// Limits: kMaxApiKeys keys, one a line.
// Fails: kBadConfig (unreadable file, no key in it, a line that is neither).
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace shoal::serve {

using KeyHash = std::array<unsigned char, 32>;

KeyHash HashKey(std::string_view key);

// A line is a key as it is, or "sha256:" and 64 hex digits; '#' starts a comment line.
Result<std::vector<KeyHash>> LoadApiKeys(const std::string& path);

// Takes the same time whatever the key and whichever of the keys it is.
bool IsKnownKey(const KeyHash& key, const std::vector<KeyHash>& known);

}  // namespace shoal::serve
