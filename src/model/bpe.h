// What: byte-level BPE: each word (as the pre-tokenizer cut it) starts as its bytes, and neighbours are merged in the order of
// the file's merge list until no rule applies.
// Owns: the merge table. Uses: the vocabulary it was made of, which must outlive it.
// Threads: immutable.
// Limits: kMaxVocabulary merges; O(n log n) in the longest word.
// Fails: kModelCorrupt when tokenizer.ggml.merges is missing or a line is not two pieces. A rule whose pieces or result are no tokens
// can never lead to a token: it is left out with a warning; of two equal rules the first counts. Bytes that no
// token stands for give nothing, as in llama.cpp.
// Source: Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; Radford et al. 2019 (bytes).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "core/ids.h"
#include "model/tokenizer_index.h"
#include "model/tokenizer_vocabulary.h"

namespace shoal {

class GgufFile;

class BpeEncoder {
 public:
  static Result<BpeEncoder> Load(const GgufFile& file, const Vocabulary& vocabulary, bool whole_tokens);

  struct Symbol {
    int32_t prev, next;
    int32_t piece;
    int32_t result;  // what merging it with the next one gives
    uint64_t merge;  // key of that merge; kNoMerge when there is no rule for it, or when it was merged itself
  };
  struct Work {
    std::vector<Symbol> symbols;
    std::vector<uint64_t> merges;  // a heap of keys (rank, then place), smallest on top
    std::string encoded;
  };
  // Appends the tokens of one word; `work` only saves allocations.
  void EncodeWord(std::string_view word, Work& work, std::vector<TokenId>& out) const;

 private:
  struct Rule {
    int32_t rank = 0;
    int32_t result = 0;
  };
  explicit BpeEncoder(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}
  bool Consider(Work& work, int32_t left) const;
  int32_t PieceOf(std::string_view text) const;

  const Vocabulary* vocabulary_;
  // Pieces are token ids; bytes without a token are numbered from the vocabulary's size on.
  std::array<int32_t, 256> byte_pieces_{};
  KeyTable<Rule> rules_;
  bool whole_tokens_ = false;
};

}  // namespace shoal
