#include "sched/block_pool.h"

#include <gtest/gtest.h>

#include <random>

namespace shoal {
namespace {

TEST(BlockPool, TakesAllOrNothing) {
  BlockPool pool(3);
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.Take(2, blocks));
  EXPECT_EQ(blocks, (std::vector<BlockId>{0, 1}));
  EXPECT_FALSE(pool.Take(2, blocks));
  EXPECT_EQ(blocks.size(), 2u);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.Check(), std::nullopt);
}

TEST(BlockPool, ASharedBlockIsFreeWhenItsLastHolderLetsGo) {
  BlockPool pool(2);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(pool.Take(1, blocks));
  pool.Hold(blocks[0]);
  pool.Release(blocks);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.holders(blocks[0]), 1);
  pool.Release(blocks);
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.Check(), std::nullopt);
}

TEST(BlockPool, KeptBlocksGoLastAndTheLongestReleasedFirst) {
  BlockPool pool(5);
  std::vector<BlockId> a, b, taken;
  ASSERT_TRUE(pool.Take(2, a));
  ASSERT_TRUE(pool.Take(2, b));
  for (const BlockId block : a) pool.Keep(block);
  pool.Keep(b[0]);
  pool.Release(a);  // 1, then 0
  pool.Release(b);  // 3 is not kept, then 2
  EXPECT_EQ(pool.free(), 5);
  EXPECT_EQ(pool.kept(), 3);
  pool.Hold(0);
  EXPECT_EQ(pool.kept(), 2);
  EXPECT_EQ(pool.Check(), std::nullopt);
  ASSERT_TRUE(pool.Take(4, taken));
  EXPECT_EQ(taken, (std::vector<BlockId>{3, 4, 1, 2}));
  EXPECT_FALSE(pool.Take(1, taken)) << "0 is held";
  pool.Forget(0);
  const BlockId zero = 0;
  pool.Release({&zero, 1});
  EXPECT_EQ(pool.kept(), 0);
  EXPECT_EQ(pool.Check(), std::nullopt);
}

TEST(BlockPool, BlocksForCountsWholeBlocks) {
  EXPECT_EQ(BlocksFor(0), 0);
  EXPECT_EQ(BlocksFor(1), 1);
  EXPECT_EQ(BlocksFor(16), 1);
  EXPECT_EQ(BlocksFor(17), 2);
}

TEST(BlockPool, RandomUseConservesBlocks) {
  std::mt19937 random(7);
  BlockPool pool(50);
  std::vector<BlockId> held;
  for (int i = 0; i < 5000; ++i) {
    const int count = static_cast<int>(random() % 6);
    switch (random() % 4) {
      case 0:
        if (pool.free() >= count) {
          ASSERT_TRUE(pool.Take(count, held));
        } else {
          ASSERT_FALSE(pool.Take(count, held));
        }
        break;
      case 1:
        if (!held.empty() && held.size() < 500) {
          held.push_back(held[random() % held.size()]);
          pool.Hold(held.back());
        }
        break;
      case 2:
        if (!held.empty()) {
          const BlockId block = held[random() % held.size()];
          random() % 3 == 0 ? pool.Forget(block) : pool.Keep(block);
        }
        break;
      default:
        for (int j = 0; j < count && !held.empty(); ++j) {
          std::swap(held[random() % held.size()], held.back());
          pool.Release({&held.back(), 1});
          held.pop_back();
        }
    }
    ASSERT_EQ(pool.Check(), std::nullopt);
  }
  pool.Release(held);
  EXPECT_EQ(pool.free(), 50);
}

TEST(BlockPoolDeathTest, AFreeBlockIsNotReleased) {
  BlockPool pool(2);
  const BlockId block = 1;
  EXPECT_DEATH(pool.Release({&block, 1}), "holders");
}

}  // namespace
}  // namespace shoal
