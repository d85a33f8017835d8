// What: SentencePiece-style merging. Characters are joined, best-scored pair first (leftmost on a tie), as long as the joined text is
// a token. What is left and no token becomes byte tokens, or one <unk> per character where the vocabulary has no bytes.
// Owns: the set of neighbouring characters inside tokens. Uses: the vocabulary it was made of, which must outlive it.
// Threads: immutable.
// Limits: none; O(n log n) in the text. Text is first cut where no token spans, so most of it is merged word by word.
// Fails: never. Ill-formed UTF-8 is encoded byte by byte.
// Source: Kudo, Richardson 2018, "SentencePiece"; the merge order is that of llama.cpp.
#pragma once

#include <string_view>
#include <vector>

#include "core/ids.h"
#include "model/tokenizer_index.h"
#include "model/tokenizer_vocabulary.h"

namespace shoal {

class SpmEncoder {
 public:
  explicit SpmEncoder(const Vocabulary& vocabulary);
  // `text` with spaces written as U+2581 already.
  void Encode(std::string_view text, std::vector<TokenId>& out) const;

 private:
  struct Work;
  void EncodeRun(std::string_view run, Work& work, std::vector<TokenId>& out) const;
  void Emit(std::string_view symbol, std::vector<TokenId>& out) const;

  const Vocabulary& vocabulary_;
  KeyTable<char> neighbours_;  // pairs of characters that stand side by side inside some token
  bool cut_ = false;           // neighbours_ is complete
  size_t longest_ = 0;
};

}  // namespace shoal
