// Groups of several ranks in one process, through the engine: whatever the stages and shares, the same bits.
#include "engine/local_group.h"

#include <gtest/gtest.h>

#include "base/bounded_queue.h"
#include "core/reasons.h"
#include "engine/engine.h"
#include "model/file_source.h"
#include "model/spec_reader.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logits;
  friend bool operator==(const Answer&, const Answer&) = default;
};

class LocalGroupTest : public ::testing::Test {
 protected:
  LocalGroupTest()
      : file_(*GgufFile::Open(testing::WriteTinyModel(folder_.path(), {.layers = 5}))),
        spec_(*ReadModelSpec(*file_)),
        tokenizer_(*Tokenizer::Load(*file_)),
        source_(file_) {}

  static RankShare Share(int begin, int end, int first_layer, int last_layer) {
    return {{begin, end}, first_layer, last_layer};
  }
  static ShardPlan Plan(std::vector<RankShare> ranks) { return {std::move(ranks), 200, {}}; }

  // Has every step computed in parts.
  class Overlapping : public Group {
   public:
    explicit Overlapping(std::unique_ptr<Group> under) : under_(std::move(under)) {}
    Status Start(const StepPlan& plan) override {
      StepPlan cut = plan;
      cut.overlap = true;
      return under_->Start(cut);
    }
    Result<StepResult> Wait(Deadline deadline) override { return under_->Wait(deadline); }
    const GroupInfo& info() const override { return under_->info(); }

   private:
    std::unique_ptr<Group> under_;
  };

  // Eight requests at once, some sampled, one with a prompt longer than a step.
  std::vector<Answer> Serve(const ShardPlan& plan, EngineOptions options, bool overlap = false) {
    auto loaded = LoadLocalGroup(spec_, source_, plan, 1);
    EXPECT_TRUE(loaded.has_value()) << ToString(loaded.error());
    if (!loaded) return {};
    std::unique_ptr<Group> group = *std::move(loaded);
    if (overlap) group = std::make_unique<Overlapping>(std::move(group));
    std::vector<Answer> answers(8);
    BoundedQueue<bool> ends(answers.size());
    const auto engine = Engine::Start(spec_, tokenizer_, std::move(group), options);
    for (size_t i = 0; i < answers.size(); ++i) {
      Request request;
      request.id = "r" + std::to_string(i);
      for (size_t t = 0; t < (i == 3 ? 45 : 3 + i); ++t)
        request.prompt.push_back(static_cast<TokenId>((t % 5 * 31 + i) % static_cast<size_t>(spec_.n_vocab)));
      request.max_tokens = 12 + static_cast<int>(i);
      request.ignore_eos = true;
      request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
      request.sampling.seed = i;
      request.sampling.want_logits = true;
      const auto handle = engine->Submit(std::move(request), [&, i](Delta delta) {
        for (TokenOutput& token : delta.tokens) {
          answers[i].tokens.push_back(token.token);
          answers[i].logits.insert(answers[i].logits.end(), token.logits.begin(), token.logits.end());
        }
        EXPECT_FALSE(delta.error.has_value()) << ToString(*delta.error);
        if (delta.finish) (void)ends.TryPush(true);
      });
      EXPECT_TRUE(handle.has_value());
    }
    for (size_t i = 0; i < answers.size(); ++i)
      EXPECT_TRUE(ends.PopBefore(Deadline::After(std::chrono::seconds(60))).has_value());
    return answers;
  }

  testing::TemporaryFolder folder_;
  std::shared_ptr<const GgufFile> file_;
  ModelSpec spec_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  FileSource source_;
};

TEST_F(LocalGroupTest, StagesAndSharesChangeNoBit) {
  const EngineOptions plain{.max_step_rows = 64, .prefix_cache = false, .speculate = false};
  const auto wanted = Serve(Plan({Share(0, 16, 0, 5)}), plain);
  ASSERT_EQ(wanted.size(), 8u);
  ASSERT_EQ(wanted[7].tokens.size(), 19u);
  const std::vector<ShardPlan> plans = {
      Plan({Share(0, 8, 0, 5), Share(8, 16, 0, 5)}),
      Plan({Share(0, 16, 0, 2), Share(0, 16, 2, 5)}),
      Plan({Share(0, 16, 0, 1), Share(0, 16, 1, 4), Share(0, 16, 4, 5)}),
      Plan({Share(0, 16, 0, 3), Share(0, 5, 3, 5), Share(5, 16, 3, 5)}),
      Plan({Share(0, 3, 0, 2), Share(3, 8, 0, 2), Share(8, 16, 0, 2), Share(0, 16, 2, 5)}),
      Plan({Share(0, 8, 0, 4), Share(8, 16, 0, 4), Share(0, 4, 4, 5), Share(4, 16, 4, 5)}),
  };
  for (const ShardPlan& plan : plans)
    for (const int rows : {3, 64})
      for (const bool speculate : {false, true}) {
        const EngineOptions options{
            .max_step_rows = rows, .max_sequences = rows == 3 ? 3 : 8, .prefix_cache = true, .speculate = speculate};
        EXPECT_EQ(Serve(plan, options), wanted) << ToString(plan) << " rows " << rows << " speculate " << speculate;
        EXPECT_EQ(Serve(plan, options, true), wanted) << ToString(plan) << " rows " << rows << " in parts";
      }
}

TEST_F(LocalGroupTest, BigStepsOverlapWhereThatIsAskedFor) {
  struct Case {
    ShardPlan plan;
    Overlap overlap;
    bool overlaps;
  };
  const std::vector<Case> cases = {
      {Plan({Share(0, 8, 0, 5), Share(8, 16, 0, 5)}), Overlap::kOn, true},
      {Plan({Share(0, 8, 0, 5), Share(8, 16, 0, 5)}), Overlap::kOff, false},
      {Plan({Share(0, 8, 0, 2), Share(8, 16, 0, 2), Share(0, 16, 2, 5)}), Overlap::kOn, true},
      {Plan({Share(0, 16, 0, 2), Share(0, 16, 2, 5)}), Overlap::kOn, false},  // no ranks share layers
      {Plan({Share(0, 16, 0, 5)}), Overlap::kOn, false},
  };
  for (const auto& [plan, overlap, overlaps] : cases) {
    auto group = LoadLocalGroup(spec_, source_, plan, 1);
    ASSERT_TRUE(group.has_value());
    BoundedQueue<bool> ends(1);  // outlives the engine, whose thread may still be leaving TryPush
    const auto engine =
        Engine::Start(spec_, tokenizer_, *std::move(group),
                      {.max_step_rows = 100, .prefix_cache = false, .speculate = false, .overlap = overlap});
    Request request;
    request.prompt.assign(220, 7);
    request.max_tokens = 3;
    request.ignore_eos = true;
    const auto handle = engine->Submit(std::move(request), [&](Delta delta) {
      EXPECT_FALSE(delta.error.has_value()) << ToString(*delta.error);
      if (delta.finish) (void)ends.TryPush(true);
    });
    ASSERT_TRUE(handle.has_value());
    ASSERT_TRUE(ends.PopBefore(Deadline::After(std::chrono::seconds(60))).has_value());
    EXPECT_EQ(engine->Stats().steps_overlapped > 0, overlaps) << ToString(plan) << " " << ToString(overlap);
  }
}

TEST_F(LocalGroupTest, SharesThatDoNotMakeUpTheModelAreRefused) {
  const std::vector<std::vector<RankShare>> wrong = {
      {},
      {Share(0, 16, 0, 4)},                                         // a layer is nobody's
      {Share(0, 16, 0, 6)},                                         // more layers than there are
      {Share(0, 16, 0, 3), Share(0, 16, 4, 5)},                     // a gap
      {Share(0, 16, 0, 3), Share(0, 16, 2, 5)},                     // a layer twice
      {Share(0, 16, 0, 5), Share(0, 16, 5, 5)},                     // a stage of nothing
      {Share(0, 8, 0, 5)},                                          // slices are nobody's
      {Share(0, 8, 0, 5), Share(7, 16, 0, 5)},                      // a slice twice
      {Share(0, 8, 0, 2), Share(0, 16, 2, 5), Share(8, 16, 0, 2)},  // a stage in two pieces
  };
  for (const auto& ranks : wrong) {
    const auto group = LoadLocalGroup(spec_, source_, Plan(ranks), 1);
    ASSERT_FALSE(group.has_value()) << ToString(Plan(ranks));
    EXPECT_EQ(group.error().reason, reasons::kBadShares);
  }
}

}  // namespace
}  // namespace shoal
