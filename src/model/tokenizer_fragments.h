// What: finds the special tokens that are written out in a text, before anything else looks at it: the longest token
// first, each from the left, wherever the text is not taken yet.
// Threads: pure.
// Limits: none; linear in the text for every special token whose letters all occur in it.
// Fails: never.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/ids.h"

namespace shoal {

struct Vocabulary;

struct TextFragment {
  TokenId token = -1;  // -1 = text
  uint32_t begin = 0, end = 0;
};

// User-defined tokens are always looked for, control and unknown ones only with `parse_special`.
std::vector<TextFragment> CutSpecial(const Vocabulary& vocabulary, std::string_view text, bool parse_special);

}  // namespace shoal
