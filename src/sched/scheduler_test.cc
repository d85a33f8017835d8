// What the scenarios (tests/scenario) cannot say: results that do not answer the plan, and the exact content
// of plans.
#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include "core/reasons.h"

namespace shoal {
namespace {

SchedulerOptions Options() {
  return {.max_step_rows = 16, .max_sequences = 4, .kv_blocks = 4, .context = 100, .vocabulary = 50, .end_tokens = {2}};
}

Request Ask(int prompt, int max_tokens) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt), 7);
  request.max_tokens = max_tokens;
  return request;
}

StepResult Answer(StepId step, std::vector<SampledToken> tokens = {}) {
  StepResult result;
  result.step = step;
  result.tokens = std::move(tokens);
  return result;
}

SampledToken Token(SequenceId id, int position, TokenId token) {
  SampledToken sampled;
  sampled.id = id;
  sampled.position = position;
  sampled.token = token;
  return sampled;
}

TEST(Scheduler, RefusesAResultThatDoesNotAnswerTheStep) {
  Scheduler scheduler(Options());
  ASSERT_TRUE(scheduler.Add(Ask(3, 5)));
  ASSERT_TRUE(scheduler.Add(Ask(4, 5)));
  EXPECT_FALSE(scheduler.Apply(Answer(1))) << "nothing is in flight";
  ASSERT_EQ(scheduler.Schedule().plan.chunks.size(), 2u);

  const StepResult good = Answer(1, {Token(1, 3, 9), Token(2, 4, 9)});
  const auto refused = [&](auto spoil) {
    StepResult bad = good;
    spoil(bad);
    return !scheduler.Apply(bad);
  };
  EXPECT_TRUE(refused([](StepResult& r) { r.step = 2; }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens.pop_back(); }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens.clear(); }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens[1] = r.tokens[0]; }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens.push_back(r.tokens[0]); }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens[0].id = 3; }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens[0].position = 4; }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens[0].token = 50; }));
  EXPECT_TRUE(refused([](StepResult& r) { r.tokens[0].token = -1; }));
  // Nothing was changed by all that.
  EXPECT_EQ(scheduler.tokens(1)->size(), 3u);
  const auto applied = scheduler.Apply(good);
  ASSERT_TRUE(applied);
  EXPECT_EQ(applied->accepted, (std::vector<size_t>{0, 1}));
  EXPECT_EQ(scheduler.Check(), std::nullopt);
}

TEST(Scheduler, AFailedTokenEndsItsSequenceWithTheError) {
  Scheduler scheduler(Options());
  ASSERT_TRUE(scheduler.Add(Ask(3, 5)));
  scheduler.Schedule();
  StepResult result = Answer(1, {Token(1, 3, -1)});
  result.tokens[0].error = MakeError(Code::kInternal, reasons::kModelProducedNan, "no number");
  const auto applied = scheduler.Apply(result);
  ASSERT_TRUE(applied);
  EXPECT_TRUE(applied->accepted.empty());
  ASSERT_EQ(applied->finished.size(), 1u);
  EXPECT_EQ(applied->finished[0].reason, FinishReason::kError);
  EXPECT_EQ(applied->finished[0].error->reason, reasons::kModelProducedNan);
  EXPECT_TRUE(scheduler.empty());
}

TEST(Scheduler, TellsTheRanksAllTheyNeed) {
  Scheduler scheduler(Options());
  Request request = Ask(20, 9);
  request.ignore_eos = true;
  request.sampling.seed = 5;
  request.sampling.prompt_logprobs = true;
  ASSERT_TRUE(scheduler.Add(request));
  const Decision decision = scheduler.Schedule();
  ASSERT_EQ(decision.plan.added.size(), 1u);
  const SequenceStart& start = decision.plan.added[0];
  EXPECT_EQ(start.tokens, request.prompt);
  EXPECT_EQ(start.prompt_length, 20);
  EXPECT_EQ(start.sampling.seed, 5u);
  EXPECT_TRUE(start.sampling.prompt_logprobs);
  EXPECT_EQ(start.forbidden, (std::vector<TokenId>{2}));
  EXPECT_EQ(decision.plan.chunks[0].new_blocks, (std::vector<BlockId>{0}));
  EXPECT_FALSE(decision.plan.chunks[0].sample);
  EXPECT_EQ(ToString(decision), "step 1 +1(20) 1[0,16)b0 admitted 1");
}

TEST(Scheduler, AReturningSequenceBringsItsTokensAndNotThePromptsLogprobsAgain) {
  Scheduler scheduler({.max_step_rows = 64, .max_sequences = 2, .kv_blocks = 2, .context = 100, .vocabulary = 50});
  ASSERT_TRUE(scheduler.Add(Ask(15, 10)));
  Request second = Ask(14, 3);
  second.sampling.prompt_logprobs = true;
  ASSERT_TRUE(scheduler.Add(second));
  StepId step = 0;
  const auto compute = [&] {
    const Decision decision = scheduler.Schedule();
    StepResult result = Answer(++step);
    for (const auto& chunk : decision.plan.chunks)
      if (chunk.sample) result.tokens.push_back(Token(chunk.id, chunk.first + chunk.count, 9));
    EXPECT_TRUE(scheduler.Apply(result));
    return decision;
  };
  compute();
  EXPECT_EQ(compute().preempted, (std::vector<SequenceId>{})) << "both fit one more row";
  const Decision short_of_blocks = compute();
  EXPECT_EQ(short_of_blocks.preempted, (std::vector<SequenceId>{2}));
  EXPECT_EQ(short_of_blocks.plan.removed, (std::vector<SequenceId>{2}));
  Decision decision;
  do decision = compute();
  while (decision.plan.added.empty());
  EXPECT_EQ(decision.plan.added[0].id, 2u);
  EXPECT_EQ(decision.plan.added[0].tokens.size(), 16u);
  EXPECT_EQ(decision.plan.added[0].prompt_length, 14);
  EXPECT_FALSE(decision.plan.added[0].sampling.prompt_logprobs);
}

// Ten thousand in the line cost no more per step than one.
TEST(Scheduler, ALongLineIsCheap) {
  Scheduler scheduler({.max_step_rows = 8, .max_sequences = 8, .kv_blocks = 100, .context = 100, .vocabulary = 50});
  for (int i = 0; i < 10'000; ++i) ASSERT_TRUE(scheduler.Add(Ask(1, 1)));
  for (SequenceId id = 2; id <= 10'000; id += 2) ASSERT_TRUE(scheduler.Cancel(id));
  EXPECT_FALSE(scheduler.Cancel(10'001));
  int steps = 0;
  size_t finished = 0;
  while (!scheduler.empty()) {
    const Decision decision = scheduler.Schedule();
    finished += decision.finished.size();
    StepResult result = Answer(decision.plan.step);
    for (const auto& chunk : decision.plan.chunks) result.tokens.push_back(Token(chunk.id, 1, 9));
    const auto applied = scheduler.Apply(result);
    ASSERT_TRUE(applied);
    finished += applied->finished.size();
    ++steps;
  }
  EXPECT_EQ(finished, 10'000u);
  EXPECT_EQ(steps, 5'000 / 8);
  EXPECT_EQ(scheduler.Check(), std::nullopt);
}

TEST(Scheduler, BigStepsAreComputedInPartsOnceThatPays) {
  SchedulerOptions options = Options();
  options.max_step_rows = 128;
  options.kv_blocks = 100;
  options.context = 1600;
  options.overlap = Overlap::kAuto;
  Scheduler scheduler(options);
  std::string steps;
  ASSERT_TRUE(scheduler.Add(Ask(9 * 128, 1)));
  for (int reset = 0; reset < 2; ++reset) {
    for (int step = 0; step < 8; ++step) {
      const StepPlan plan = scheduler.Schedule().plan;
      steps += plan.overlap ? 'P' : '.';
      StepResult result = Answer(plan.step);
      result.compute_ns = plan.rows() * (plan.overlap ? 700 : 1000);
      result.meeting_ns = plan.rows() * (plan.overlap ? 20 : 300);
      ASSERT_TRUE(scheduler.Apply(result));
    }
    scheduler.Reset();
    steps += ' ';
  }
  EXPECT_EQ(steps, ".P..PPPP .P..PPPP ");
}

}  // namespace
}  // namespace shoal
