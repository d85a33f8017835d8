#include "plan/split.h"

#include <gtest/gtest.h>

#include "core/reasons.h"

namespace shoal {
namespace {

TEST(Split, SlicesFollowTheWeights) {
  const auto plan = PlanSplit({22, 2048, 16}, {{"a", 3, 0}, {"b", 1, 0}}, 1);
  ASSERT_TRUE(plan);
  EXPECT_EQ(ToString(*plan), "rank 0: layers 0..22, slices 0..12 of 16; rank 1: layers 0..22, slices 12..16 of 16");
}

TEST(Split, RefusesTooManyNodesAndSenselessWeights) {
  EXPECT_EQ(PlanSplit({1, 1, 16}, std::vector<PlanNode>(17), 1).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanSplit({1, 1, 16}, {}, 1).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanSplit({1, 1, 16}, {{"a", 0, 0}}, 1).error().reason, reasons::kBadShares);
}

TEST(Split, StagesShareTheLayersAndTheLastOneHasTheLogitsToo) {
  const std::vector<PlanNode> two = {{"a", 1, 0}, {"b", 1, 0}};
  EXPECT_EQ(ToString(*PlanSplit({22, 2048, 16}, two, 2)),
            "rank 0: layers 0..11, slices 0..16 of 16; rank 1: layers 11..22, slices 0..16 of 16");
  EXPECT_EQ(ToString(*PlanSplit({22, 2048, 16, 1.5}, two, 2)),
            "rank 0: layers 0..12, slices 0..16 of 16; rank 1: layers 12..22, slices 0..16 of 16");
  EXPECT_EQ(ToString(*PlanSplit({8, 2048, 16}, {{"a", 3, 0}, {"b", 1, 0}}, 2)),
            "rank 0: layers 0..6, slices 0..16 of 16; rank 1: layers 6..8, slices 0..16 of 16");
}

TEST(Split, StagesOfSeveralRanks) {
  const auto plan = PlanSplit({6, 2048, 16}, {{"a", 1, 0}, {"b", 2, 0}, {"c", 2, 0}}, 2);
  ASSERT_TRUE(plan);
  EXPECT_EQ(ToString(*plan),
            "rank 0: layers 0..1, slices 0..16 of 16; rank 1: layers 1..6, slices 0..8 of 16; rank 2: layers 1..6, "
            "slices 8..16 of 16");
  EXPECT_TRUE(CheckShardPlan(*plan, 6));
  EXPECT_EQ(DrawingRank(*plan), 1);
}

TEST(Split, RefusesStagesThatCannotBe) {
  const std::vector<PlanNode> two = {{"a", 1, 0}, {"b", 1, 0}};
  EXPECT_EQ(PlanSplit({22, 1, 16}, two, 3).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanSplit({1, 1, 16}, two, 2).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanSplit({1, 1, 16}, two, 0).error().reason, reasons::kBadShares);
}

TEST(Split, ThePoolIsTheSmallestThatANodeCanHold) {
  const std::vector<PlanNode> nodes = {{"a", 1, 1000}, {"b", 1, 300}};
  auto plan = PlanSplit({2, 160, 16}, nodes, 1);
  ASSERT_TRUE(plan);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 10}, {64}));
  EXPECT_EQ(plan->kv_blocks, 30);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 0}, {64}));  // rank 1 has no heads
  EXPECT_EQ(plan->kv_blocks, 100);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {1, 1}, {2}));
  EXPECT_EQ(plan->kv_blocks, 20);  // two contexts are all that is wished for
  const auto none = SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 301}, {64});
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().message, "b has no memory for one block of KV cache");
}

}  // namespace
}  // namespace shoal
