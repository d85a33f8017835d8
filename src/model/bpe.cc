#include "model/bpe.h"

#include <algorithm>
#include <format>
#include <string>

#include "base/log.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf.h"
#include "model/printable.h"
#include "model/unicode.h"

namespace shoal {
namespace {

constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";
constexpr uint64_t kNoMerge = UINT64_MAX;

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

std::string ByteText(int byte) {
  std::string out;
  AppendUtf8(out, ByteToChar(static_cast<uint8_t>(byte)));
  return out;
}

}  // namespace

int32_t BpeEncoder::PieceOf(std::string_view text) const {
  if (const TokenId id = vocabulary_->index.Find(text); id >= 0) return id;
  // A lone byte can be a piece of a rule without being a token.
  const Utf8Char c = text.empty() ? Utf8Char{} : ReadUtf8(text, 0);
  const int byte = c.valid && c.length == text.size() ? CharToByte(c.code) : -1;
  return byte < 0 ? -1 : byte_pieces_[static_cast<size_t>(byte)];
}

Result<BpeEncoder> BpeEncoder::Load(const GgufFile& file, const Vocabulary& vocabulary, bool whole_tokens) {
  BpeEncoder out(vocabulary);
  out.whole_tokens_ = whole_tokens;
  for (int byte = 0; byte < 256; ++byte) {
    const TokenId id = vocabulary.index.Find(ByteText(byte));
    out.byte_pieces_[static_cast<size_t>(byte)] = id >= 0 ? id : vocabulary.size() + byte;
  }

  const auto corrupt = [&](const std::string& what) {
    return Fail(Code::kCorrupt, reasons::kModelCorrupt, std::format("{}: {}: {}", file.name(), kMergesKey, what));
  };
  SHOAL_ASSIGN(const auto lines, file.GetStrings(kMergesKey));
  if (!lines) return corrupt("is missing");
  if (lines->size() > limits::kMaxMerges)
    return corrupt(std::format("{} merges; at most {} are accepted", lines->size(), limits::kMaxMerges));
  out.rules_.Reserve(lines->size());
  size_t useless = 0;
  std::string joined;
  for (size_t rank = 0; rank < lines->size(); ++rank) {
    const std::string_view line = (*lines)[rank];
    const size_t space = line.size() < 3 ? std::string_view::npos : line.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == line.size()) {
      return corrupt(std::format("merge {} '{}' is not two pieces with a space between", rank, Printable(line, 40)));
    }
    const int32_t left = out.PieceOf(line.substr(0, space));
    const int32_t right = out.PieceOf(line.substr(space + 1));
    joined.assign(line.substr(0, space)).append(line.substr(space + 1));
    const TokenId result = vocabulary.index.Find(joined);
    if (left < 0 || right < 0 || result < 0 ||
        !out.rules_.Insert(PairKey(left, right), {static_cast<int32_t>(rank), result})) {
      ++useless;
    }
  }
  if (useless > 0) {
    Log().warn("{}: {}: {} of {} rules are repeated or name no tokens and are left out", file.name(), kMergesKey,
               useless, lines->size());
  }
  return out;
}

// Finds out anew whether `left` can be merged with the one behind it. A key on the heap that is no longer its symbol's is void.
bool BpeEncoder::Consider(Work& work, int32_t left) const {
  if (left < 0) return false;
  Symbol& symbol = work.symbols[static_cast<size_t>(left)];
  symbol.merge = kNoMerge;
  if (symbol.next < 0) return false;
  const Rule* rule = rules_.Find(PairKey(symbol.piece, work.symbols[static_cast<size_t>(symbol.next)].piece));
  if (rule == nullptr) return false;
  symbol.merge = PairKey(rule->rank, left);
  symbol.result = rule->result;
  work.merges.push_back(symbol.merge);
  return true;
}

void BpeEncoder::EncodeWord(std::string_view word, Work& work, std::vector<TokenId>& out) const {
  if (whole_tokens_ && word.size() <= limits::kMaxTokenBytes) {
    work.encoded.clear();
    for (const char c : word) AppendUtf8(work.encoded, ByteToChar(static_cast<uint8_t>(c)));
    if (const TokenId id = vocabulary_->index.Find(work.encoded); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  auto& symbols = work.symbols;
  auto& merges = work.merges;
  symbols.clear();
  merges.clear();
  symbols.reserve(word.size());
  for (const char c : word) {
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({at - 1, at + 1, byte_pieces_[static_cast<unsigned char>(c)], -1, kNoMerge});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) Consider(work, i);
  constexpr auto kSmallestOnTop = std::ranges::greater{};
  std::ranges::make_heap(merges, kSmallestOnTop);

  while (!merges.empty()) {
    std::ranges::pop_heap(merges, kSmallestOnTop);
    const uint64_t key = merges.back();
    merges.pop_back();
    const auto at = static_cast<int32_t>(key & 0xFFFFFFFFu);
    Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.merge != key) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.piece = left.result;
    left.next = right.next;
    right.merge = kNoMerge;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].prev = at;
    if (Consider(work, left.prev)) std::ranges::push_heap(merges, kSmallestOnTop);
    if (Consider(work, at)) std::ranges::push_heap(merges, kSmallestOnTop);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const int32_t piece = symbols[static_cast<size_t>(i)].piece;
    if (piece < vocabulary_->size()) out.push_back(piece);
  }
}

}  // namespace shoal
