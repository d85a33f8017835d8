#include "comm/tree_sum.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "core/reasons.h"

namespace shoal {
namespace {

constexpr size_t kBlock = 512;  // floats added at a time: the scratch rows stay in the first-level cache

// Loads and stores that need no alignment; 8 floats are what one or two instructions take on every target.
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

// to == left or to == right is fine: element i is read before it is written.
void AddRows(const float* left, const float* right, float* to, size_t count) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const Lanes a = *reinterpret_cast<const Lanes*>(left + i) + *reinterpret_cast<const Lanes*>(right + i);
    const Lanes b = *reinterpret_cast<const Lanes*>(left + i + 8) + *reinterpret_cast<const Lanes*>(right + i + 8);
    *reinterpret_cast<Lanes*>(to + i) = a;
    *reinterpret_cast<Lanes*>(to + i + 8) = b;
  }
  for (; i < count; ++i) to[i] = left[i] + right[i];
}

}  // namespace

Result<TreeSum> TreeSum::Make(const ReduceShares& shares, int ranks) {
  const auto bad = [](std::string why) {
    return Fail(Code::kInternal, reasons::kBadShares, "the shares of a sum do not fit together", std::move(why));
  };
  if (shares.subtrees.size() != static_cast<size_t>(ranks) || ranks > limits::kMaxRanks)
    return bad(std::to_string(shares.subtrees.size()) + " shares for " + std::to_string(ranks) + " ranks");
  TreeSum sum;
  sum.ranks_ = ranks;
  std::array<bool, kSlices> taken{};
  std::array<int8_t, kSlices> slot_at;  // of the subtree that begins at this slice; -1: none begins here
  std::array<int8_t, kSlices> size_at{};
  slot_at.fill(-1);
  std::vector<int32_t> words;
  int slot = 0;
  for (int r = 0; r < ranks; ++r) {
    sum.first_slot_[static_cast<size_t>(r)] = slot;
    for (const Subtree& tree : shares.subtrees[static_cast<size_t>(r)]) {
      const std::string place = "[" + std::to_string(tree.begin) + ", +" + std::to_string(tree.size) + ")";
      if (tree.begin < 0 || tree.begin >= kSlices || tree.size < 1 || tree.size > kSlices - tree.begin ||
          !std::has_single_bit(static_cast<unsigned>(tree.size)) || tree.begin % tree.size != 0)
        return bad(place + " is no aligned subtree");
      for (int s = tree.begin; s < tree.end(); ++s) {
        if (taken[static_cast<size_t>(s)]) return bad(place + " overlaps another subtree");
        taken[static_cast<size_t>(s)] = true;
      }
      slot_at[static_cast<size_t>(tree.begin)] = static_cast<int8_t>(slot++);
      size_at[static_cast<size_t>(tree.begin)] = static_cast<int8_t>(tree.size);
      words.insert(words.end(), {r, tree.begin, tree.size});
    }
    sum.most_slots_ = std::max(sum.most_slots_, slot - sum.first_slot_[static_cast<size_t>(r)]);
  }
  sum.first_slot_[static_cast<size_t>(ranks)] = slot;
  if (slot == 0) return bad("no rank brings anything");
  sum.tag_ = static_cast<uint32_t>(XXH3_64bits(words.data(), words.size() * sizeof(int32_t)));
  sum.only_ = sum.Build(0, kSlices, 0, slot_at, size_at);
  if (sum.add_count_ > 0) sum.adds_[static_cast<size_t>(sum.add_count_ - 1)].to = kOutRow;
  return sum;
}

// Returns the row that will hold the sum of slices [begin, begin + size), or -1 when all of them are absent.
// Scratch rows are a stack: `depth` of them are in use.
int TreeSum::Build(int begin, int size, int depth, const std::array<int8_t, kSlices>& slot_at,
                   const std::array<int8_t, kSlices>& size_at) {
  if (slot_at[static_cast<size_t>(begin)] >= 0 && size_at[static_cast<size_t>(begin)] == size)
    return slot_at[static_cast<size_t>(begin)];
  if (size == 1) return -1;
  const int left = Build(begin, size / 2, depth, slot_at, size_at);
  const int right = Build(begin + size / 2, size / 2, left >= kSlices ? depth + 1 : depth, slot_at, size_at);
  if (left < 0) return right;
  if (right < 0) return left;
  SHOAL_CHECK(depth < kScratch);
  const int to = kSlices + depth;
  adds_[static_cast<size_t>(add_count_++)] = {static_cast<uint8_t>(left), static_cast<uint8_t>(right),
                                              static_cast<uint8_t>(to)};
  return to;
}

void TreeSum::Combine(std::span<const float* const> inputs, std::span<float> out) const {
  SHOAL_CHECK(inputs.size() == static_cast<size_t>(slots()));
  if (out.empty()) return;
  if (add_count_ == 0) {
    const float* only = inputs[static_cast<size_t>(only_)];
    if (only != out.data()) std::memmove(out.data(), only, out.size_bytes());
    return;
  }
  alignas(64) float scratch[kScratch][kBlock];
  for (size_t at = 0; at < out.size(); at += kBlock) {
    const size_t count = std::min(kBlock, out.size() - at);
    const auto row = [&](int index) -> const float* {
      return index < kSlices ? inputs[static_cast<size_t>(index)] + at : scratch[index - kSlices];
    };
    for (int i = 0; i < add_count_; ++i) {
      const Add& add = adds_[static_cast<size_t>(i)];
      float* to = add.to == kOutRow ? out.data() + at : scratch[add.to - kSlices];
      AddRows(row(add.left), row(add.right), to, count);
    }
  }
}

Result<const TreeSum*> TreeSumCache::Find(const ReduceShares& shares) {
  for (const Entry& entry : entries_)
    if (entry.subtrees == shares.subtrees) return &entry.sum;
  SHOAL_ASSIGN(TreeSum sum, TreeSum::Make(shares, ranks_));
  if (entries_.size() < kCachedShares) {
    entries_.reserve(kCachedShares);
    entries_.push_back({shares.subtrees, sum});
    return &entries_.back().sum;
  }
  Entry& entry = entries_[next_++ % kCachedShares];
  entry = {shares.subtrees, sum};
  return &entry.sum;
}

}  // namespace shoal
