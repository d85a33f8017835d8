// What: the pool of KV blocks (kBlockTokens positions each) of one group. It knows numbers only; the bytes lie on the ranks.
//
//     unused ──Take──▶ held (by one or more) ──last Release──▶ unused
//                        ▲   │                                      or, when Keep was said: kept ──Take──▶ held anew
//                        └───┴── Hold ◀──────────────────────────────────────────────────────┘
//
// A kept block still holds something that may be asked for again; nobody holds it, so it is free for the asking. Take gives
// the unused blocks first, then the kept ones, least recently released first.
// Owns: which blocks are unused, kept and held, and by how many (a shared prefix is held by several sequences).
// Threads: one.
// Limits: `blocks` of the constructor. Every operation is O(1) per block.
// Fails: Take returns false and takes nothing. Releasing a block that nobody holds is our own bug (CHECK).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/ids.h"
#include "core/limits.h"

namespace shoal {

// Blocks that hold `positions` positions.
constexpr int BlocksFor(int positions) { return (positions + limits::kBlockTokens - 1) / limits::kBlockTokens; }

class BlockPool {
 public:
  explicit BlockPool(int blocks);

  int size() const { return static_cast<int>(blocks_.size()) - 1; }
  int free() const { return static_cast<int>(unused_.size()) + kept_; }  // that Take can give: unused and kept
  int kept() const { return kept_; }

  // Appends `count` free blocks to `out`, each then held once and not to be kept; all or nothing.
  [[nodiscard]] bool Take(int count, std::vector<BlockId>& out);
  // One more holder of a block that is held or kept.
  void Hold(BlockId block);
  // One holder less of each, the last of the list first: of a sequence's blocks the later ones are given up before those
  // they build upon.
  void Release(std::span<const BlockId> blocks);
  // A held block that is to be kept when its last holder lets go; Forget takes that back, of a kept one too.
  void Keep(BlockId block);
  void Forget(BlockId block);

  int holders(BlockId block) const { return at(block).holders; }

  // Nothing, or what is wrong: every block is either unused once, kept once, or held.
  std::optional<std::string> Check() const;

 private:
  struct Block {
    int holders = 0;
    bool keep = false;
    BlockId newer = 0, older = 0;  // neighbours in the ring of kept blocks
  };
  const Block& at(BlockId block) const;
  Block& at(BlockId block) { return const_cast<Block&>(std::as_const(*this).at(block)); }
  void Unlink(BlockId block);

  std::vector<BlockId> unused_;  // a stack: the block that was given back last is the warmest
  std::vector<Block> blocks_;    // and one more: the ring's head, whose `newer` is the oldest kept block
  int kept_ = 0;
};

}  // namespace shoal
