// What: bytes of tokens as JSON may carry them.
// Threads: pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace shoal::serve {

bool IsUtf8(std::string_view bytes);

// Characters that begin in `bytes`.
int64_t CharacterCount(std::string_view bytes);

// A token for a client: its text, or "bytes:\xe2\x98" when it is no whole characters (OpenAI's form).
std::string PrintableToken(std::string_view bytes);

}  // namespace shoal::serve
