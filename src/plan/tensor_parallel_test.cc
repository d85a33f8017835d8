#include "plan/tensor_parallel.h"

#include <gtest/gtest.h>

#include "core/reasons.h"

namespace shoal {
namespace {

TEST(TensorParallel, SlicesFollowTheWeights) {
  const auto plan = PlanTensorParallel({22, 2048, 16}, {{"a", 3, 0}, {"b", 1, 0}});
  ASSERT_TRUE(plan);
  EXPECT_EQ(ToString(*plan), "rank 0: layers 0..22, slices 0..12 of 16; rank 1: layers 0..22, slices 12..16 of 16");
}

TEST(TensorParallel, RefusesTooManyNodesAndSenselessWeights) {
  EXPECT_EQ(PlanTensorParallel({1, 1, 16}, std::vector<PlanNode>(17)).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanTensorParallel({1, 1, 16}, {}).error().reason, reasons::kBadShares);
  EXPECT_EQ(PlanTensorParallel({1, 1, 16}, {{"a", 0, 0}}).error().reason, reasons::kBadShares);
}

TEST(TensorParallel, ThePoolIsTheSmallestThatANodeCanHold) {
  const std::vector<PlanNode> nodes = {{"a", 1, 1000}, {"b", 1, 300}};
  auto plan = PlanTensorParallel({2, 160, 16}, nodes);
  ASSERT_TRUE(plan);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 10}, {64}));
  EXPECT_EQ(plan->kv_blocks, 30);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 0}, {64}));  // rank 1 has no heads
  EXPECT_EQ(plan->kv_blocks, 100);
  ASSERT_TRUE(SizeKvPool(*plan, {2, 160, 16}, nodes, {1, 1}, {2}));
  EXPECT_EQ(plan->kv_blocks, 20);  // two contexts are all that is wished for
  EXPECT_FALSE(SizeKvPool(*plan, {2, 160, 16}, nodes, {10, 301}, {64}));
}

}  // namespace
}  // namespace shoal
