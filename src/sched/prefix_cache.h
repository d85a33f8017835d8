// What: which KV blocks hold which tokens, so that a prefix that was computed once is found again. The K and V of a position
// depend on the tokens up to it and on nothing else, so a full block is known by its own tokens and the block before it:
//
//     start of a tenant ── [16 tokens] ── [16 tokens] ── …        an entry: (the entry before it, 16 tokens) ▶ block
//                               └──────── [16 tokens]
//
// A hash only finds the entry; then the tokens and the entry before are compared. By induction a match is the very same
// history: a collision can hide an entry, it can never give a wrong one. Entries are numbered and numbers never return, so
// what came after a forgotten entry cannot be reached through its successor in the same block.
// Owns: the entries. Which blocks are held, kept and given away is the pool's business (sched/block_pool.h).
// Threads: one.
// Limits: one entry per block. Add, Forget: O(1); Find: O(tokens it looks at).
// Fails: never; what cannot be remembered is computed again.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/ids.h"
#include "core/limits.h"

namespace shoal {

class PrefixCache {
 public:
  // A place in the tree of histories: after the tokens of an entry; by default at the start.
  struct Place {
    uint64_t entry = 0;
    BlockId block = -1;
    bool lost = false;  // nothing can be remembered after it
  };
  // The block of a match, in order, and the place after the last.
  struct Match {
    std::vector<BlockId> blocks;
    Place end;
  };

  explicit PrefixCache(int blocks) : entries_(static_cast<size_t>(blocks)) {}

  // The longest prefix of `tokens` that is known, in whole blocks, at most `most`.
  Match Find(std::string_view tenant, std::span<const TokenId> tokens, int most) const;
  // `block` holds the K and V of `tokens` (kBlockTokens of them) that follow `place`; moves `place` behind them. True: the
  // block is now the one to find. False: another block holds the same, or there is no way to remember it.
  bool Add(std::string_view tenant, std::span<const TokenId> tokens, BlockId block, Place& place);
  // The block is about to hold something else.
  void Forget(BlockId block);

  bool Knows(BlockId block) const { return entries_[static_cast<size_t>(block)].number != 0; }
  size_t size() const { return index_.size(); }

 private:
  using BlockOfTokens = std::array<TokenId, limits::kBlockTokens>;
  struct Entry {
    uint64_t number = 0;  // 0: none
    uint64_t before = 0;  // number of the entry before; 0: the tokens are a tenant's first
    uint64_t hash = 0;
    BlockOfTokens tokens = {};
    std::string tenant;  // of a first one
  };
  // The block of exactly this history; -1: none. `taken`: its place in the index is another history's.
  BlockId Look(uint64_t before, std::string_view tenant, std::span<const TokenId> tokens, uint64_t hash,
               bool* taken) const;

  std::vector<Entry> entries_;                   // [block]
  std::unordered_map<uint64_t, BlockId> index_;  // by hash
  uint64_t last_number_ = 0;
};

}  // namespace shoal
