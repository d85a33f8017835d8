#include "sim/pretend_group.h"

#include <gtest/gtest.h>

#include "core/reasons.h"

namespace shoal::sim {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(20)); }

SequenceStart StartOf(SequenceId id, std::vector<TokenId> tokens) {
  const int length = static_cast<int>(tokens.size());
  return {.id = id, .tokens = std::move(tokens), .prompt_length = length, .sampling = {}, .forbidden = {}};
}

StepPlan FirstStep() {
  return {.step = 1, .removed = {}, .added = {StartOf(1, {5, 6, 7})}, .chunks = {{1, 0, 3, {2}, true}}};
}

TEST(PretendGroup, DrawsTheHashOfTheHistory) {
  const PretendOptions options;
  PretendGroup group(options);
  ASSERT_TRUE(group.Start(FirstStep()));
  const auto first = group.Wait(Soon());
  ASSERT_TRUE(first);
  ASSERT_EQ(first->tokens.size(), 1u);
  EXPECT_EQ(first->tokens[0].position, 3);
  std::vector<TokenId> history{5, 6, 7};
  EXPECT_EQ(first->tokens[0].token, DrawPretend(options, history, {}).token);

  ASSERT_TRUE(group.Start(
      {.step = 2, .removed = {}, .added = {}, .chunks = {{1, 3, 1, {}, true, {}, {first->tokens[0].token}}}}));
  const auto second = group.Wait(Soon());
  ASSERT_TRUE(second);
  history.push_back(first->tokens[0].token);
  EXPECT_EQ(second->tokens[0].token, DrawPretend(options, history, {}).token);
}

TEST(PretendGroup, RefusesTokensThatWereNotDrawn) {
  const PretendOptions options;
  for (const bool other : {false, true}) {
    PretendGroup group(options);
    ASSERT_TRUE(group.Start(FirstStep()));
    const auto first = group.Wait(Soon());
    ASSERT_TRUE(first);
    std::vector<TokenId> told;
    if (other) told.push_back((first->tokens[0].token + 1) % options.vocabulary);
    const auto started =
        group.Start({.step = 2, .removed = {}, .added = {}, .chunks = {{1, 3, 1, {}, true, {}, told}}});
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().reason, reasons::kBadFrame);
  }
}

TEST(PretendGroup, RefusesPlansThatRanksCouldNotCarryOut) {
  const auto refused = [](auto spoil) {
    PretendGroup group({.kv_blocks = 4});
    StepPlan plan = FirstStep();
    spoil(plan);
    const Status started = group.Start(plan);
    return !started && started.error().reason == reasons::kBadFrame;
  };
  EXPECT_FALSE(refused([](StepPlan&) {}));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.step = 2; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks.clear(); }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.removed = {9}; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.added.push_back(plan.added[0]); }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.added.clear(); }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].first = 1; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].count = 4; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].count = 2; }));  // samples too early
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].new_blocks = {}; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].new_blocks = {4}; }));
  EXPECT_TRUE(refused([](StepPlan& plan) { plan.chunks[0].new_blocks = {1, 1}; }));
}

TEST(PretendGroup, IsClosedAfterAFailure) {
  PretendGroup group({.fail_wait_at = 1});
  ASSERT_TRUE(group.Start(FirstStep()));
  const auto lost = group.Wait(Soon());
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().reason, reasons::kPeerLost);
  EXPECT_EQ(group.Start(FirstStep()).error().reason, reasons::kGroupClosed);
}

TEST(PretendGroup, NeverDrawsWhatIsForbidden) {
  const PretendOptions options{.vocabulary = 3, .end_token = 2, .end_one_in = 2};
  std::vector<TokenId> history{1};
  const std::vector<TokenId> forbidden{2};
  bool ended = false;
  for (int i = 0; i < 100; ++i) {
    ended |= DrawPretend(options, history, {}).token == 2;
    const TokenId next = DrawPretend(options, history, forbidden).token;
    EXPECT_NE(next, 2);
    history.push_back(next);
  }
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace shoal::sim
