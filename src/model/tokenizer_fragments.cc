#include "model/tokenizer_fragments.h"

#include <cstring>

#include "model/tokenizer_vocabulary.h"

namespace shoal {
namespace {

size_t PairOf(std::string_view text, size_t i) {
  return static_cast<size_t>(static_cast<unsigned char>(text[i])) << 8 | static_cast<unsigned char>(text[i + 1]);
}

// Which pairs of bytes stand side by side in a text: most special tokens have one that does not occur, and need no search.
class PairSet {
 public:
  explicit PairSet(std::string_view text) : seen_(1 << 16), bytes_(1 << 8) {
    for (size_t i = 0; i + 1 < text.size(); ++i) seen_[PairOf(text, i)] = true;
    for (const char c : text) bytes_[static_cast<unsigned char>(c)] = true;
  }
  bool MayContain(std::string_view token) const {
    if (!bytes_[static_cast<unsigned char>(token[0])]) return false;
    for (size_t i = 0; i + 1 < token.size(); ++i) {
      if (!seen_[PairOf(token, i)]) return false;
    }
    return true;
  }

 private:
  std::vector<bool> seen_, bytes_;
};

// memmem is linear whatever the needle; std::string_view::find is not.
const char* Find(const char* begin, const char* end, std::string_view needle) {
  return static_cast<const char*>(memmem(begin, static_cast<size_t>(end - begin), needle.data(), needle.size()));
}

bool IsSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

std::vector<TextFragment> CutSpecial(const Vocabulary& vocabulary, std::string_view text, bool parse_special) {
  std::vector<TextFragment> fragments;
  if (text.empty()) return fragments;
  fragments.push_back({-1, 0, static_cast<uint32_t>(text.size())});
  if (vocabulary.special.empty()) return fragments;
  const PairSet pairs(text);
  std::vector<TextFragment> next;
  for (size_t i = 0; i < vocabulary.special.size(); ++i) {
    const TokenId token = vocabulary.special[i];
    const std::string_view name = vocabulary.texts[static_cast<size_t>(token)];
    if (!parse_special && vocabulary.KindOf(token) != TokenKind::kUserDefined) continue;
    if (!pairs.MayContain(name) || Find(text.data(), text.data() + text.size(), name) == nullptr) continue;

    const bool strip_left = (vocabulary.strip[i] & Vocabulary::kStripLeft) != 0;
    const bool strip_right = (vocabulary.strip[i] & Vocabulary::kStripRight) != 0;
    next.clear();
    for (const TextFragment& fragment : fragments) {
      uint32_t begin = fragment.begin;
      const char* found = nullptr;
      while (fragment.token < 0 && begin < fragment.end &&
             (found = Find(text.data() + begin, text.data() + fragment.end, name)) != nullptr) {
        const auto at = static_cast<uint32_t>(found - text.data());
        uint32_t left_end = at;
        while (strip_left && left_end > begin && IsSpace(text[left_end - 1])) --left_end;
        if (left_end > begin) next.push_back({-1, begin, left_end});
        next.push_back({token, at, at + static_cast<uint32_t>(name.size())});
        begin = at + static_cast<uint32_t>(name.size());
        while (strip_right && begin < fragment.end && IsSpace(text[begin])) ++begin;
      }
      if (fragment.token >= 0 || begin < fragment.end) next.push_back({fragment.token, begin, fragment.end});
    }
    fragments.swap(next);
  }
  return fragments;
}

}  // namespace shoal
