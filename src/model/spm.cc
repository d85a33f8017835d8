#include "model/spm.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "model/unicode.h"

namespace shoal {
namespace {

constexpr size_t kMaxPairs = 2 << 20;

// Bytes of the character at `offset`. A lead byte takes only continuation bytes along: what follows an ill-formed byte (a
// space mark, say) stays a character of its own.
size_t CharLength(std::string_view text, size_t offset) {
  const size_t announced = std::min(Utf8LeadLength(static_cast<unsigned char>(text[offset])), text.size() - offset);
  size_t length = 1;
  while (length < announced && (static_cast<unsigned char>(text[offset + length]) & 0xC0) == 0x80) ++length;
  return length;
}

uint32_t CharKey(std::string_view text, size_t offset, size_t length) {
  uint32_t key = 0;
  std::memcpy(&key, text.data() + offset, length);
  return key;
}

uint64_t PairKey(uint32_t left, uint32_t right) { return (static_cast<uint64_t>(left) << 32) | right; }

// Calls f(key of pair) for each two neighbouring characters.
template <class F>
void ForEachPair(std::string_view text, F f) {
  uint32_t left = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = CharLength(text, i);
    const uint32_t right = CharKey(text, i, length);
    if (i > 0) f(PairKey(left, right));
    left = right;
    i += length;
  }
}

constexpr uint64_t kNoJoin = UINT64_MAX;

struct Symbol {
  int32_t prev, next;
  uint32_t start, length;  // length 0 = joined into the one before
  uint64_t join;           // key of joining it with the next one; kNoJoin when that is no token
};

// Smaller for better scores, then for places further left: what lies on the heap is nothing but this.
uint64_t JoinKey(float score, int32_t left) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 counts as 0
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(~ascending) << 32) | static_cast<uint32_t>(left);
}

}  // namespace

struct SpmEncoder::Work {
  std::vector<Symbol> symbols;
  std::vector<uint64_t> joins;  // a heap of keys, smallest on top
};

SpmEncoder::SpmEncoder(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
  std::vector<uint64_t> keys;
  const auto drop_repeated = [&] {
    std::ranges::sort(keys);
    keys.erase(std::ranges::unique(keys).begin(), keys.end());
  };
  for (const std::string_view text : vocabulary.texts) {
    longest_ = std::max(longest_, text.size());
    ForEachPair(text, [&](uint64_t key) { keys.push_back(key); });
    if (keys.size() < 2 * kMaxPairs) continue;
    drop_repeated();
    if (keys.size() > kMaxPairs) return;  // no real vocabulary; without the set, text is merged as one run
  }
  drop_repeated();
  neighbours_.Reserve(keys.size());
  for (const uint64_t key : keys) neighbours_.Insert(key, 1);
  cut_ = true;
}

void SpmEncoder::Encode(std::string_view text, std::vector<TokenId>& out) const {
  Work work;
  uint32_t left = 0;
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = CharLength(text, i);
    const uint32_t right = CharKey(text, i, length);
    if (cut_ && i > start && neighbours_.Find(PairKey(left, right)) == nullptr) {
      EncodeRun(text.substr(start, i - start), work, out);
      start = i;
    }
    left = right;
    i += length;
  }
  if (start < text.size()) EncodeRun(text.substr(start), work, out);
}

void SpmEncoder::EncodeRun(std::string_view run, Work& work, std::vector<TokenId>& out) const {
  if (const TokenId id = run.size() <= 4 && CharLength(run, 0) == run.size() ? vocabulary_.index.Find(run) : -1;
      id >= 0) {
    out.push_back(id);
    return;
  }
  auto& symbols = work.symbols;
  auto& joins = work.joins;
  symbols.clear();
  joins.clear();
  symbols.reserve(run.size());
  for (size_t i = 0; i < run.size();) {
    const size_t length = CharLength(run, i);
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({at - 1, at + 1, static_cast<uint32_t>(i), static_cast<uint32_t>(length), kNoJoin});
    i += length;
  }
  symbols.back().next = -1;

  // Finds out anew whether `left` can be joined with the one behind it. A key on the heap that is no longer its symbol's is void.
  const auto consider = [&](int32_t left) {
    if (left < 0) return false;
    Symbol& a = symbols[static_cast<size_t>(left)];
    a.join = kNoJoin;
    if (a.next < 0) return false;
    const uint32_t length = a.length + symbols[static_cast<size_t>(a.next)].length;
    if (length > longest_) return false;
    const TokenId id = vocabulary_.index.Find(run.substr(a.start, length));
    if (id < 0) return false;
    a.join = JoinKey(vocabulary_.scores.empty() ? 0.0f : vocabulary_.scores[static_cast<size_t>(id)], left);
    joins.push_back(a.join);
    return true;
  };
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) consider(i);
  constexpr auto kSmallestOnTop = std::ranges::greater{};
  std::ranges::make_heap(joins, kSmallestOnTop);

  while (!joins.empty()) {
    std::ranges::pop_heap(joins, kSmallestOnTop);
    const uint64_t key = joins.back();
    joins.pop_back();
    const auto at = static_cast<int32_t>(key & 0xFFFFFFFFu);
    Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.join != key) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.length += right.length;
    left.next = right.next;
    right.length = 0;
    right.join = kNoJoin;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].prev = at;
    if (consider(left.prev)) std::ranges::push_heap(joins, kSmallestOnTop);
    if (consider(at)) std::ranges::push_heap(joins, kSmallestOnTop);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    Emit(run.substr(symbol.start, symbol.length), out);
  }
}

void SpmEncoder::Emit(std::string_view symbol, std::vector<TokenId>& out) const {
  if (const TokenId id = vocabulary_.index.Find(symbol); id >= 0) {
    out.push_back(id);
    return;
  }
  const auto byte_id = [&](char c) { return vocabulary_.byte_ids[static_cast<unsigned char>(c)]; };
  if (std::ranges::all_of(symbol, [&](char c) { return byte_id(c) >= 0; })) {
    for (const char c : symbol) out.push_back(byte_id(c));
  } else if (vocabulary_.unk >= 0) {
    out.push_back(vocabulary_.unk);
  }
}

}  // namespace shoal
