// What: the vocabulary of a model as its GGUF metadata states it: texts, kinds, scores, special ids and what is added to
// a text. Nothing of how text is cut.
// Owns: copies of all texts, so that the file may go.
// Threads: immutable after LoadVocabulary.
// Limits: limits::kMaxVocabulary, limits::kMaxTokenBytes.
// Fails: kUnsupportedTokenizer for another tokenizer.ggml.model, kModelCorrupt naming the key.
// Rules for odd but usable files: an empty text is never matched; of two ids with one text the lower one is encoded (both
// decode); texts that are not UTF-8 stay the bytes they are; no end-of-sequence token is a warning.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "core/ids.h"
#include "model/tokenizer_index.h"

namespace shoal {

class GgufFile;

enum class TokenizerKind : uint8_t { kSpm, kBpe, kWordPiece };

enum class TokenKind : uint8_t { kUndefined = 0, kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct Vocabulary {
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  TokenizerKind kind = TokenizerKind::kSpm;
  std::vector<std::string_view> texts;   // as written in the file
  std::vector<std::string_view> pieces;  // the bytes a token stands for inside a text, whatever its kind
  std::vector<TokenKind> kinds;
  std::vector<float> scores;            // empty = all 0
  std::vector<std::string_view> words;  // texts without those of control and unknown tokens: what plain text may become
  TokenIndex index;                     // over words once loaded
  std::array<TokenId, 256> byte_ids{};  // kSpm: the token of a byte, -1 = none

  TokenId bos = -1, eos = -1, unk = -1, sep = -1;
  bool add_bos = false, add_eos = false, add_sep = false;
  bool add_space_prefix = false;
  bool lower_case = true, strip_accents = true;  // kWordPiece
  std::vector<TokenId> end_tokens;               // ascending
  std::vector<TokenId> special;                  // matched in text before all else: longest first, then lowest id
  std::vector<uint8_t> strip;                    // per entry of `special`: kStripLeft | kStripRight
  static constexpr uint8_t kStripLeft = 1, kStripRight = 2;

  int size() const { return static_cast<int>(texts.size()); }
  TokenKind KindOf(TokenId id) const { return kinds[static_cast<size_t>(id)]; }

  // What texts and pieces point into; vectors, because their bytes stay in place when the object moves.
  std::vector<char> storage, piece_storage;
};

// `adds_bos` is what holds for byte-level BPE where the file does not say (the pre-tokenizer's habit).
Result<Vocabulary> LoadVocabulary(const GgufFile& file, TokenizerKind kind, bool adds_bos);

}  // namespace shoal
