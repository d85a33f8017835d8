#include "model/wordpiece.h"

#include <algorithm>

#include "model/unicode.h"

namespace shoal {
namespace {

// Characters that are words of their own; the ranges are those of the original tokenizer, its slip at U+2B820 included.
bool IsCjk(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

}  // namespace

WordPieceEncoder::WordPieceEncoder(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    if (!vocabulary.words[static_cast<size_t>(id)].empty()) sorted_.push_back(id);
  }
  const auto text = [&](TokenId id) { return vocabulary.words[static_cast<size_t>(id)]; };
  std::ranges::sort(sorted_, [&](TokenId a, TokenId b) {
    const int order = text(a).compare(text(b));
    return order < 0 || (order == 0 && a < b);
  });
  const Range all{0, static_cast<uint32_t>(sorted_.size())};
  for (int byte = 0; byte < 256; ++byte) by_first_[static_cast<size_t>(byte)] = Narrow(all, 0, static_cast<char>(byte));
}

// The tokens of `range`, all equal in their first `depth` bytes, whose next byte is `byte`.
WordPieceEncoder::Range WordPieceEncoder::Narrow(Range range, size_t depth, char byte) const {
  // Texts that end here sort first and have no next byte.
  const auto key = [&](TokenId id) {
    const std::string_view text = vocabulary_.words[static_cast<size_t>(id)];
    return text.size() <= depth ? -1 : static_cast<int>(static_cast<unsigned char>(text[depth]));
  };
  const auto found = std::ranges::equal_range(sorted_.begin() + range.begin, sorted_.begin() + range.end,
                                              static_cast<int>(static_cast<unsigned char>(byte)), {}, key);
  return {static_cast<uint32_t>(found.begin() - sorted_.begin()), static_cast<uint32_t>(found.end() - sorted_.begin())};
}

void WordPieceEncoder::EncodeWord(std::string& word, std::vector<TokenId>& out) const {
  if (word.empty()) return;
  word.insert(0, kSpaceMark);
  const size_t before = out.size();
  for (size_t at = 0; at < word.size();) {
    TokenId best = -1;
    size_t best_end = at;
    Range range = by_first_[static_cast<unsigned char>(word[at])];
    for (size_t depth = 1; range.begin < range.end; ++depth) {
      const TokenId first = sorted_[range.begin];
      if (vocabulary_.words[static_cast<size_t>(first)].size() == depth) {
        best = first;
        best_end = at + depth;
      }
      if (at + depth == word.size()) break;
      range = Narrow(range, depth, word[at + depth]);
    }
    if (best < 0) {
      out.resize(before);
      out.push_back(vocabulary_.unk);
      break;
    }
    out.push_back(best);
    at = best_end;
  }
  word.clear();
}

void WordPieceEncoder::Encode(std::string_view text, std::vector<TokenId>& out) const {
  std::string word;
  for (size_t i = 0; i < text.size();) {
    const Utf8Char read = ReadUtf8(text, i);
    i += read.length;
    const char32_t code = vocabulary_.strip_accents ? NfdBase(read.code) : read.code;
    if (IsWhiteSpace(code)) {
      EncodeWord(word, out);
      continue;
    }
    const CharClass kind = ClassOf(code);
    if (code == 0 || code == kReplacement || kind == CharClass::kControl) continue;
    if (vocabulary_.strip_accents && kind == CharClass::kMark) continue;
    const bool alone = kind == CharClass::kPunctuation || (code < 0x7F && kind == CharClass::kSymbol) || IsCjk(code);
    if (alone) EncodeWord(word, out);
    AppendUtf8(word, vocabulary_.lower_case ? LowerCase(code) : code);
    if (alone) EncodeWord(word, out);
  }
  EncodeWord(word, out);
}

}  // namespace shoal
