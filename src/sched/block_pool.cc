#include "sched/block_pool.h"

#include <ranges>

#include "base/check.h"

namespace shoal {

BlockPool::BlockPool(int blocks) : blocks_(static_cast<size_t>(blocks) + 1) {
  SHOAL_CHECK(blocks >= 0);
  unused_.reserve(static_cast<size_t>(blocks));
  for (int block = blocks - 1; block >= 0; --block) unused_.push_back(block);  // the lowest id is taken first
  blocks_.back().newer = blocks_.back().older = blocks;
}

const BlockPool::Block& BlockPool::at(BlockId block) const {
  SHOAL_CHECK(block >= 0 && block < size());
  return blocks_[static_cast<size_t>(block)];
}

void BlockPool::Unlink(BlockId block) {
  const Block& gone = at(block);
  blocks_[static_cast<size_t>(gone.newer)].older = gone.older;
  blocks_[static_cast<size_t>(gone.older)].newer = gone.newer;
  --kept_;
}

bool BlockPool::Take(int count, std::vector<BlockId>& out) {
  SHOAL_CHECK(count >= 0);
  if (count > free()) return false;
  for (int i = 0; i < count; ++i) {
    BlockId block = blocks_.back().newer;
    if (!unused_.empty()) {
      block = unused_.back();
      unused_.pop_back();
    } else {
      Unlink(block);
    }
    at(block) = {.holders = 1};
    out.push_back(block);
  }
  return true;
}

void BlockPool::Hold(BlockId block) {
  Block& held = at(block);
  SHOAL_CHECK(held.holders > 0 || held.keep);
  if (held.holders++ == 0) Unlink(block);
}

void BlockPool::Release(std::span<const BlockId> blocks) {
  const BlockId head = size();
  for (const BlockId block : std::views::reverse(blocks)) {
    Block& released = at(block);
    SHOAL_CHECK(released.holders > 0);
    if (--released.holders > 0) continue;
    if (!released.keep) {
      unused_.push_back(block);
      continue;
    }
    released.newer = head;
    released.older = blocks_.back().older;
    blocks_[static_cast<size_t>(released.older)].newer = block;
    blocks_.back().older = block;
    ++kept_;
  }
}

void BlockPool::Keep(BlockId block) {
  SHOAL_CHECK(holders(block) > 0);
  at(block).keep = true;
}

void BlockPool::Forget(BlockId block) {
  Block& forgotten = at(block);
  if (!std::exchange(forgotten.keep, false) || forgotten.holders > 0) return;
  Unlink(block);
  unused_.push_back(block);
}

std::optional<std::string> BlockPool::Check() const {
  std::vector<bool> seen(static_cast<size_t>(size()), false);
  const auto see = [&](BlockId block, const char* list) -> std::optional<std::string> {
    const std::string name = list + (" block " + std::to_string(block));
    if (block < 0 || block >= size()) return name + " does not exist";
    if (seen[static_cast<size_t>(block)]) return name + " is there twice";
    if (holders(block) != 0) return name + " is held";
    seen[static_cast<size_t>(block)] = true;
    return std::nullopt;
  };
  for (const BlockId block : unused_) {
    if (auto wrong = see(block, "unused")) return wrong;
    if (at(block).keep) return "unused block " + std::to_string(block) + " is to be kept";
  }
  int kept = 0;
  for (BlockId block = blocks_.back().newer; block != size(); block = at(block).newer) {
    if (auto wrong = see(block, "kept")) return wrong;
    if (!at(block).keep) return "kept block " + std::to_string(block) + " is not to be kept";
    ++kept;
  }
  if (kept != kept_) return "the count of kept blocks is wrong";
  for (BlockId block = 0; block < size(); ++block)
    if (!seen[static_cast<size_t>(block)] && holders(block) <= 0)
      return "block " + std::to_string(block) + " is neither unused nor kept nor held";
  return std::nullopt;
}

}  // namespace shoal
