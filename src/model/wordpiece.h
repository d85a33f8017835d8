// What: WordPiece (BERT). Text is normalised (accents stripped, lower case), cut at white space, punctuation and
// CJK characters; each word is covered from the left by the longest tokens, word beginnings being written with
// U+2581 in front. A word that cannot be covered is one unknown token.
// Owns: the token ids in the order of their texts. Uses: the vocabulary it was made of, which must outlive it.
// Threads: immutable.
// Limits: none; linear in the text times the longest match.
// Fails: never. Ill-formed bytes count as U+FFFD and are dropped, as are control characters.
// Source: Devlin et al. 2018, "BERT"; normalisation as llama.cpp does it (every mark is an accent, a character becomes the first
// one of its decomposition).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/ids.h"
#include "model/tokenizer_vocabulary.h"

namespace shoal {

class WordPieceEncoder {
 public:
  explicit WordPieceEncoder(const Vocabulary& vocabulary);
  void Encode(std::string_view text, std::vector<TokenId>& out) const;

 private:
  void EncodeWord(std::string& word, std::vector<TokenId>& out) const;  // leaves `word` empty

  struct Range {
    uint32_t begin = 0, end = 0;
  };
  Range Narrow(Range range, size_t depth, char byte) const;

  const Vocabulary& vocabulary_;
  std::vector<TokenId> sorted_;        // by text, then by id: a range of it is a node of the vocabulary's trie
  std::array<Range, 256> by_first_{};  // the ranges at depth 1
};

}  // namespace shoal
