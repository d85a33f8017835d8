// What: cuts text into the pieces inside which byte-level BPE may merge, as the model was trained. Each `tokenizer.ggml.pre`
// name stands for a list of regular expressions; each splits the pieces of the one before, matches and gaps alike.
// Owns: the compiled expressions (PCRE2, JIT).
// Threads: immutable after ForName; Split may be called from any thread.
// Limits: PCRE2 match, depth and heap limits per match.
// Fails: kUnsupportedTokenizer for a name that is not in the table; Split: kResourceExhausted at a match limit.
// Source: the names and what they mean, as llama.cpp (src/llama-vocab.cpp) and the models' own tokenizer.json define them. Where
// llama.cpp knowingly departs from tokenizer.json (letters without case in "gpt-4o" and "tekken", a wide space is never
// punctuation in the DeepSeek ones) the ids are llama.cpp's.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace shoal {

class PreTokenizer {
 public:
  static Result<PreTokenizer> ForName(std::string_view name);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Appends the lengths of the pieces of `text`, which must be well-formed UTF-8; they add up to text.size().
  Status Split(std::string_view text, std::vector<uint32_t>& lengths) const;

  bool ignore_merges() const { return ignore_merges_; }  // a piece that is a token stays whole whatever the merges say
  bool adds_bos() const { return adds_bos_; }            // unless the file says otherwise

 private:
  struct Expression;
  PreTokenizer();
  std::vector<std::unique_ptr<Expression>> expressions_;
  bool ignore_merges_ = false;
  bool adds_bos_ = false;
};

}  // namespace shoal
