#include "core/slices.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace shoal {
namespace {

TEST(Slices, EveryUnitBelongsToExactlyOneSlice) {
  for (int64_t units : {1, 2, 3, 5, 6, 12, 16, 17, 31, 32, 33, 176, 5632}) {
    int64_t next = 0;
    for (int s = 0; s < kSlices; ++s) {
      const auto range = UnitsOf({s, s + 1}, units);
      EXPECT_EQ(range.first, next);
      next = range.last;
    }
    EXPECT_EQ(next, units);
  }
}

TEST(Slices, MaximalSubtreesAreAlignedAndCoverTheRun) {
  EXPECT_EQ(MaximalSubtrees({0, 16}, 64), (std::vector<Subtree>{{0, 16}}));
  EXPECT_EQ(MaximalSubtrees({0, 5}, 64), (std::vector<Subtree>{{0, 4}, {4, 1}}));
  EXPECT_EQ(MaximalSubtrees({5, 16}, 64), (std::vector<Subtree>{{5, 1}, {6, 2}, {8, 8}}));
  EXPECT_EQ(MaximalSubtrees({1, 15}, 64).size(), 6u);
  // Two units: they sit in slices 7 and 15, every other slice is absent.
  EXPECT_EQ(MaximalSubtrees({0, 7}, 2), (std::vector<Subtree>{}));
  EXPECT_EQ(MaximalSubtrees({7, 9}, 2), (std::vector<Subtree>{{7, 1}}));
}

TEST(Slices, SharesAreContiguousAndNeverEmpty) {
  for (int ranks = 1; ranks <= kSlices; ++ranks) {
    std::vector<double> weights(ranks, 1.0);
    weights[0] = 7.5;
    const auto runs = ShareSlices(weights);
    int at = 0;
    for (const auto& run : runs) {
      EXPECT_EQ(run.begin, at);
      EXPECT_GT(run.size(), 0);
      at = run.end;
    }
    EXPECT_EQ(at, kSlices);
  }
  EXPECT_EQ(ShareSlices({3, 1}), (std::vector<SliceRun>{{0, 12}, {12, 16}}));
}

// The sum over any split equals, bit for bit, the sum that one rank computes.
TEST(Slices, TheTreeSumDoesNotDependOnTheSplit) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (int64_t units : {1, 2, 3, 6, 15, 16, 40}) {
    std::vector<float> slice_sum(kSlices);
    for (auto& v : slice_sum) v = normal(random);
    auto subtree_sum = [&](Subtree tree) {
      std::vector<std::pair<Subtree, float>> leaves;
      for (int s = tree.begin; s < tree.end(); ++s)
        if (UnitsOf({s, s + 1}, units).count() > 0) leaves.push_back({{s, 1}, slice_sum[s]});
      return CombineSubtrees(std::move(leaves), [](float& a, float b) { a += b; });
    };
    const float whole = subtree_sum({0, kSlices});
    for (int trial = 0; trial < 200; ++trial) {
      const int ranks = std::uniform_int_distribution<int>(1, kSlices)(random);
      std::vector<double> weights(ranks);
      for (auto& w : weights) w = std::uniform_real_distribution<double>(0.1, 5)(random);
      std::vector<std::pair<Subtree, float>> parts;
      for (const auto& run : ShareSlices(weights))
        for (const auto& tree : MaximalSubtrees(run, units)) parts.push_back({tree, subtree_sum(tree)});
      EXPECT_EQ(CombineSubtrees(std::move(parts), [](float& a, float b) { a += b; }), whole);
    }
  }
}

}  // namespace
}  // namespace shoal
