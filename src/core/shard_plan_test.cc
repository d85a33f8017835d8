#include "core/shard_plan.h"

#include <gtest/gtest.h>

#include "core/reasons.h"

namespace shoal {
namespace {

ShardPlan TwoAndOne() { return {{{{0, 5}, 0, 7}, {{5, 16}, 0, 7}, {{0, 16}, 7, 9}}, 10, {"because"}}; }

TEST(ShardPlan, StagesAreTheRunsOfRanksWithTheSameLayers) {
  const auto stages = StagesOf(TwoAndOne());
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_EQ(stages[0].first_rank, 0);
  EXPECT_EQ(stages[0].ranks, 2);
  EXPECT_EQ(stages[0].last_layer, 7);
  EXPECT_EQ(stages[1].first_rank, 2);
  EXPECT_EQ(stages[1].ranks, 1);
  EXPECT_EQ(stages[1].first_layer, 7);
  EXPECT_EQ(DrawingRank(TwoAndOne()), 2);
  EXPECT_TRUE(CheckShardPlan(TwoAndOne(), 9).has_value());
}

TEST(ShardPlan, AStageAloneKeepsItsSharesAndThePool) {
  ShardPlan plan = TwoAndOne();
  plan.kv_type = KvType::kQ8_0;
  const ShardPlan stage = StagePlan(plan, StagesOf(plan)[0]);
  EXPECT_EQ(stage.ranks, (std::vector<RankShare>{{{0, 5}, 0, 7}, {{5, 16}, 0, 7}}));
  EXPECT_EQ(stage.kv_blocks, 10);
  EXPECT_EQ(stage.kv_type, KvType::kQ8_0);
}

TEST(ShardPlan, AnErrorNamesWhatDoesNotFit) {
  const auto checked = CheckShardPlan(TwoAndOne(), 10);
  ASSERT_FALSE(checked.has_value());
  EXPECT_EQ(checked.error().reason, reasons::kBadShares);
  EXPECT_NE(checked.error().message.find("layer 9 of 10"), std::string::npos) << checked.error().message;
}

}  // namespace
}  // namespace shoal
