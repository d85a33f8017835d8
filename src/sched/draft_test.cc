#include "sched/draft.h"

#include <gtest/gtest.h>

#include "core/step.h"

namespace shoal {
namespace {

using Tokens = std::vector<TokenId>;

TEST(LookUp, ProposesWhatFollowedTheLatestOccurrence) {
  EXPECT_EQ(LookUp(Tokens{1, 2, 3, 4, 5, 6, 1, 2, 3}, 2), (Tokens{4, 5}));
  EXPECT_EQ(LookUp(Tokens{1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3}, 1), (Tokens{8}));
  EXPECT_EQ(LookUp(Tokens{9, 2, 3, 7, 1, 2, 3}, 3), (Tokens{7, 1, 2})) << "two tokens where three never came";
  EXPECT_EQ(LookUp(Tokens{1, 2, 3, 4, 1, 2, 3, 9, 0, 2, 3, 5, 1, 2, 3}, 1), (Tokens{9})) << "three count more than two";
}

TEST(LookUp, ProposesNothingWhereNothingWasSaidBefore) {
  for (const Tokens& history :
       {Tokens{}, Tokens{1}, Tokens{1, 2}, Tokens{1, 2, 3}, Tokens{1, 2, 3, 4, 1, 5}, Tokens{2, 1}})
    EXPECT_EQ(LookUp(history, 5), Tokens{});
  EXPECT_EQ(LookUp(Tokens{1, 2, 3, 1, 2, 3}, 0), Tokens{});
}

TEST(LookUp, GoesOnWithALoop) {
  EXPECT_EQ(LookUp(Tokens{5, 7, 7, 7}, 4), (Tokens{7, 7, 7, 7}));
  EXPECT_EQ(LookUp(Tokens{1, 2, 1, 2, 1, 2}, 5), (Tokens{1, 2, 1, 2, 1}));
  EXPECT_EQ(LookUp(Tokens{1, 2, 3, 1, 2, 3}, 7), (Tokens{1, 2, 3, 1, 2, 3, 1}));
}

StepCost Cost(double base, double row) {
  StepCost cost;
  for (const int rows : {1, 4, 8}) cost.Observe(rows, static_cast<int64_t>(base + row * rows));
  return cost;
}

TEST(DraftLength, FollowsTheChanceAndThePriceOfARow) {
  EXPECT_EQ(DraftLength(0.5, Cost(10'000, 1'000), 1, 8), 3);   // 0.5^j > 1.25 / 11
  EXPECT_EQ(DraftLength(0.99, Cost(10'000, 1'000), 1, 8), 8);  // all that it may
  EXPECT_EQ(DraftLength(0.05, Cost(10'000, 1'000), 1, 8), 0);
  EXPECT_EQ(DraftLength(0.9, Cost(10'000, 10'000), 1, 8), 4) << "rows as dear as steps: only near certainty";
  EXPECT_EQ(DraftLength(0.5, Cost(0, 10'000), 1, 8), 0);
  EXPECT_EQ(DraftLength(0.9, Cost(1'000, 1'000), 64, 8), 0) << "in a large batch a token is cheap";
  EXPECT_EQ(DraftLength(0.9, Cost(10'000, 1'000), 1, 0), 0);
  EXPECT_EQ(DraftLength(0.9, Cost(10'000, 1'000), 1, -3), 0);
  EXPECT_GT(DraftLength(0.5, StepCost{}, 1, 8), 0) << "nothing measured yet: one sequence may try";
  EXPECT_EQ(DraftLength(0.5, StepCost{}, 64, 8), 0);
}

TEST(DraftChance, FallsUntilNothingIsProposedAndProbesSeldom) {
  const StepCost cost = Cost(10'000, 1'000);
  DraftChance chance;
  int proposed = 0;
  for (int step = 0; step < 1000; ++step) {
    const int length = DraftLength(chance.value(), cost, 1, 8);
    proposed += length;
    if (length > 0)
      chance.Verified(length, 0);
    else
      chance.NotTried();
  }
  EXPECT_LT(proposed, 160) << "of 1000 steps";
  EXPECT_GT(proposed, 10) << "it does try again";
  for (int step = 0; step < 300; ++step) {
    const int length = DraftLength(chance.value(), cost, 1, 8);
    if (length > 0)
      chance.Verified(length, length);
    else
      chance.NotTried();
  }
  EXPECT_EQ(DraftLength(chance.value(), cost, 1, 8), 8) << "times have changed";
}

TEST(StepCost, FitsALineThroughWhatWasMeasured) {
  const StepCost cost = Cost(40'000, 2'500);
  EXPECT_NEAR(cost.base(), 40'000, 1);
  EXPECT_NEAR(cost.row(), 2'500, 1);
  EXPECT_NEAR(cost.Of(100), 290'000, 1);
}

TEST(StepCost, KnowsNoSlopeFromOnePoint) {
  StepCost cost;
  EXPECT_FALSE(cost.known());
  cost.Observe(0, 100);
  cost.Observe(5, 0);
  EXPECT_FALSE(cost.known());
  for (int i = 0; i < 10; ++i) cost.Observe(1, 9'000);
  EXPECT_NEAR(cost.row(), 1'000, 1);
  EXPECT_NEAR(cost.Of(1), 9'000, 1);
}

TEST(StepCost, AStepThatWasHeldUpChangesLittleAndOldOnesAreForgotten) {
  StepCost cost;
  for (int i = 0; i < 200; ++i) cost.Observe(i % 8 + 1, 10'000 + 1'000 * (i % 8 + 1));
  cost.Observe(4, 1'000'000);
  EXPECT_NEAR(cost.Of(4), 14'000, 700);
  for (int i = 0; i < 600; ++i) cost.Observe(i % 8 + 1, 2 * (10'000 + 1'000 * (i % 8 + 1)));
  EXPECT_NEAR(cost.Of(4), 28'000, 300);
}

TEST(StepCost, NoNoiseMakesRowsOrStepsFree) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(i % 2 == 0 ? 1 : 9, i % 2 == 0 ? 20'000 : 10'000);
  EXPECT_GT(cost.row(), 0);
  EXPECT_GE(cost.base(), 0);
  StepCost steep;
  for (int i = 0; i < 50; ++i) steep.Observe(i % 2 == 0 ? 1 : 2, i % 2 == 0 ? 1'000 : 100'000);
  EXPECT_GE(steep.base(), 0);
}

}  // namespace
}  // namespace shoal
