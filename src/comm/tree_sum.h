// What: the fixed tree of core/slices.h as a short program that adds whole vectors, made once per set of
// shares. All back ends add through it, so their bits are the same.
// Threads: Combine is const and may run in several threads at once; the cache belongs to one rank.
// Limits: 16 slots (there are 16 slices); kCachedShares sets of shares are remembered.
// Fails: kBadShares when subtrees overlap, are not aligned, or there are none.
// Reads next: core/slices.h, comm/collective.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "comm/collective.h"
#include "core/limits.h"
#include "core/slices.h"

namespace shoal {

class TreeSum {
 public:
  static Result<TreeSum> Make(const ReduceShares& shares, int ranks);

  // A slot is one subtree sum; rank r's are [first_slot(r), first_slot(r + 1)), in the order of its shares.
  int slots() const { return first_slot_[static_cast<size_t>(ranks_)]; }
  int first_slot(int rank) const { return first_slot_[static_cast<size_t>(rank)]; }
  int slots_of(int rank) const { return first_slot(rank + 1) - first_slot(rank); }
  int most_slots() const { return most_slots_; }  // of one rank
  uint32_t tag() const { return tag_; }           // the same on ranks with the same shares

  // out[i] = the root over inputs[slot][i]. inputs.size() == slots(); out may be one of the inputs, else must
  // not overlap them.
  void Combine(std::span<const float* const> inputs, std::span<float> out) const;

 private:
  // rows[to] = rows[left] + rows[right]. Rows: the inputs, then kScratch scratch rows, then the output.
  struct Add {
    uint8_t left;
    uint8_t right;
    uint8_t to;
  };
  static constexpr int kScratch = 5;
  static constexpr int kOutRow = kSlices + kScratch;
  int Build(int begin, int size, int depth, const std::array<int8_t, kSlices>& slot_at,
            const std::array<int8_t, kSlices>& size_at);

  int ranks_ = 0;
  int most_slots_ = 0;
  uint32_t tag_ = 0;
  std::array<int, limits::kMaxRanks + 1> first_slot_{};
  std::array<Add, kSlices> adds_{};
  int add_count_ = 0;
  int only_ = -1;  // the single slot, when there is nothing to add
};

// The programs of the shares seen last. A model meets with two or three different ones, over and over.
class TreeSumCache {
 public:
  explicit TreeSumCache(int ranks) : ranks_(ranks) {}
  // Valid until the next call.
  Result<const TreeSum*> Find(const ReduceShares& shares);

 private:
  static constexpr size_t kCachedShares = 16;
  struct Entry {
    std::vector<std::vector<Subtree>> subtrees;
    TreeSum sum;
  };
  int ranks_;
  size_t next_ = 0;  // the one replaced when the cache is full
  std::vector<Entry> entries_;
};

}  // namespace shoal
