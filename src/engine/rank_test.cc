#include "engine/rank.h"

#include <gtest/gtest.h>

#include <tuple>

#include "comm/local.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/file_source.h"
#include "model/spec_reader.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

constexpr int kBlocks = 4;

class RankTest : public ::testing::Test {
 protected:
  RankTest()
      : file_(*GgufFile::Open(testing::WriteTinyModel(folder_.path()))),
        spec_(*ReadModelSpec(*file_)),
        source_(file_),
        collectives_(MakeLocalGroup(1)),
        rank_(Load(kBlocks, 1)) {}

  std::unique_ptr<Rank> Load(int blocks, int threads) {
    ShardPlan plan;
    plan.ranks.push_back({{0, kSlices}, 0, spec_.n_layers});
    plan.kv_blocks = blocks;
    auto rank = Rank::Load(spec_, source_, plan, 0, {*collectives_[0]}, {.threads = threads});
    EXPECT_TRUE(rank.has_value()) << ToString(rank.error());
    return *std::move(rank);
  }

  // Sequence 1, five tokens, all of them computed and one drawn.
  static StepPlan Prompt() {
    StepPlan plan;
    plan.step = 1;
    SequenceStart start;
    start.id = 1;
    start.tokens = {1, 40, 41, 42, 43};
    start.prompt_length = 5;
    start.sampling.temperature = 0;
    plan.added.push_back(start);
    plan.chunks.push_back(Chunk(1, 0, 5, {0}));
    return plan;
  }
  static SequenceChunk Chunk(SequenceId id, int first, int count, std::vector<BlockId> blocks, bool sample = true) {
    SequenceChunk chunk;
    chunk.id = id;
    chunk.first = first;
    chunk.count = count;
    chunk.new_blocks = std::move(blocks);
    chunk.sample = sample;
    return chunk;
  }
  static StepPlan Next(SequenceChunk chunk) {
    StepPlan plan;
    plan.step = 2;
    plan.chunks.push_back(std::move(chunk));
    return plan;
  }
  void ExpectRefused(const StepPlan& plan, const std::string& why) {
    const auto result = rank_->Execute(plan);
    ASSERT_FALSE(result.has_value()) << why;
    EXPECT_EQ(result.error().reason, reasons::kBadFrame) << ToString(result.error());
    EXPECT_NE(result.error().message.find(why), std::string::npos) << result.error().message;
  }

  testing::TemporaryFolder folder_;
  std::shared_ptr<const GgufFile> file_;
  ModelSpec spec_;
  FileSource source_;
  std::vector<std::unique_ptr<Collective>> collectives_;
  std::unique_ptr<Rank> rank_;
};

TEST_F(RankTest, TakesTheDrawnTokensFromThePlan) {
  auto first = rank_->Execute(Prompt());
  ASSERT_TRUE(first.has_value()) << ToString(first.error());
  ASSERT_EQ(first->tokens.size(), 1u);
  EXPECT_EQ(first->tokens[0].position, 5);
  SequenceChunk chunk = Chunk(1, 5, 1, {});
  chunk.new_tokens = {first->tokens[0].token};
  auto second = rank_->Execute(Next(chunk));
  ASSERT_TRUE(second.has_value()) << ToString(second.error());
  EXPECT_EQ(second->tokens[0].position, 6);
}

TEST_F(RankTest, ManySequencesDrawBesideEachOtherWhatTheyDrawAlone) {
  constexpr int kSequences = 40;  // with eight draws each there is enough to share out
  StepPlan plan;
  plan.step = 1;
  for (int i = 0; i < kSequences; ++i) {
    SequenceStart start;
    start.id = static_cast<SequenceId>(i + 1);
    start.tokens = {1, 40 + i % 7};
    start.prompt_length = 2;
    start.sampling.temperature = i % 3 == 0 ? 0.0f : 1.0f;
    start.sampling.seed = static_cast<uint64_t>(i);
    start.sampling.logprobs = i % 2 == 0 ? 3 : -1;
    start.sampling.prompt_logprobs = i % 5 == 0;
    plan.added.push_back(start);
    plan.chunks.push_back(Chunk(start.id, 0, 2, {i}));
    plan.chunks.back().draft = {40, 41, 42, 43, 44, 45, 46};
  }
  StepResult alone, shared;
  for (auto [result, threads] : {std::pair{&alone, 1}, {&shared, 4}}) {
    auto drawn = Load(kSequences, threads)->Execute(plan);
    ASSERT_TRUE(drawn.has_value()) << ToString(drawn.error());
    *result = *std::move(drawn);
  }
  ASSERT_GE(alone.tokens.size(), size_t{kSequences});
  ASSERT_EQ(alone.tokens.size(), shared.tokens.size());
  for (size_t i = 0; i < alone.tokens.size(); ++i) {
    const SampledToken &a = alone.tokens[i], &b = shared.tokens[i];
    EXPECT_EQ(std::tuple(a.id, a.position, a.token, a.logprob), std::tuple(b.id, b.position, b.token, b.logprob)) << i;
    EXPECT_EQ(a.top, b.top) << i;
  }
  ASSERT_EQ(alone.prompt.size(), size_t{kSequences / 5});
  ASSERT_EQ(shared.prompt.size(), alone.prompt.size());
  for (size_t i = 0; i < alone.prompt.size(); ++i)
    EXPECT_EQ(std::tuple(alone.prompt[i].id, alone.prompt[i].chosen),
              std::tuple(shared.prompt[i].id, shared.prompt[i].chosen));
}

TEST_F(RankTest, ADrawIsNoTokenUntilThePlanSaysSo) {
  ASSERT_TRUE(rank_->Execute(Prompt()).has_value());
  ExpectRefused(Next(Chunk(1, 5, 1, {})), "rows beyond");
}

TEST_F(RankTest, RefusesNewTokensThatCannotBe) {
  for (const TokenId token : {-1, spec_.n_vocab}) {
    StepPlan plan = Prompt();
    plan.removed = {1};
    plan.step += static_cast<StepId>(token + 2);
    plan.chunks[0].new_tokens = {token};
    ExpectRefused(plan, "vocabulary");
  }
}

TEST_F(RankTest, RefusesSequencesThatItDoesNotHold) { ExpectRefused(Next(Chunk(2, 0, 1, {0})), "unknown"); }

TEST_F(RankTest, ForgetsWhatIsRemoved) {
  ASSERT_TRUE(rank_->Execute(Prompt()).has_value());
  StepPlan plan = Next(Chunk(1, 5, 1, {}));
  plan.removed = {1};
  ExpectRefused(plan, "unknown");
}

TEST_F(RankTest, RefusesSequencesThatAreHereAlready) {
  ASSERT_TRUE(rank_->Execute(Prompt()).has_value());
  StepPlan plan = Prompt();
  plan.step = 2;
  ExpectRefused(plan, "already");
}

TEST_F(RankTest, RefusesASequenceTwiceInAStep) {
  StepPlan plan = Prompt();
  plan.chunks[0].count = 2;
  plan.chunks[0].sample = false;
  plan.chunks.push_back(Chunk(1, 2, 3, {}));
  ExpectRefused(plan, "twice");
}

TEST_F(RankTest, RefusesBlocksOutsideThePool) {
  for (const BlockId block : {-1, kBlocks, 1 << 30}) {
    StepPlan plan = Prompt();
    plan.step += static_cast<StepId>(block & 7);
    plan.removed = {1};
    plan.chunks[0].new_blocks = {block};
    ExpectRefused(plan, "not in the pool");
  }
}

TEST_F(RankTest, RefusesTooFewBlocks) {
  StepPlan plan = Prompt();
  plan.chunks[0].new_blocks.clear();
  ExpectRefused(plan, "too few blocks");
}

TEST_F(RankTest, RefusesRowsBeyondTheTokens) {
  for (const auto& [first, count] : std::vector<std::pair<int, int>>{{0, 6}, {5, 1}, {-1, 1}, {0, 0}}) {
    StepPlan plan = Prompt();
    plan.removed = {1};
    plan.step += static_cast<StepId>(count + 10 * (first + 1));
    plan.chunks[0] = Chunk(1, first, count, {0}, false);
    ExpectRefused(plan, "rows beyond");
  }
}

TEST_F(RankTest, RefusesADrawBeforeTheLastToken) {
  StepPlan plan = Prompt();
  plan.chunks[0].count = 4;
  ExpectRefused(plan, "a draw before");
}

TEST_F(RankTest, RefusesTokensAndLengthsThatCannotBe) {
  for (const TokenId token : {-1, spec_.n_vocab}) {
    StepPlan plan = Prompt();
    plan.removed = {1};
    plan.added[0].tokens[2] = token;
    ExpectRefused(plan, "vocabulary");
  }
  for (const int length : {0, 6}) {
    StepPlan plan = Prompt();
    plan.removed = {1};
    plan.added[0].prompt_length = length;
    ExpectRefused(plan, "prompt length");
  }
}

TEST_F(RankTest, RefusesMoreRowsThanAStepMayHave) {
  StepPlan plan = Prompt();
  plan.chunks[0].count = limits::kMaxStepRows + 1;
  ExpectRefused(plan, "more rows");
}

TEST_F(RankTest, RefusesMoreSequencesThanAStepMayHave) {
  StepPlan plan;
  plan.step = 1;
  for (int i = 1; i <= limits::kMaxStepSequences + 1; ++i) {
    SequenceStart start = Prompt().added[0];
    start.id = static_cast<SequenceId>(i);
    plan.added.push_back(start);
    plan.chunks.push_back(Chunk(start.id, 0, 1, {0}, false));
  }
  ExpectRefused(plan, "more sequences");
}

}  // namespace
}  // namespace shoal
