#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <set>

#include "tests/scenario/script.h"
#include "tests/scenario/world.h"
#include "tests/support/shared.h"

namespace shoal::scenario {
namespace {

std::vector<std::string> Scripts() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(SHOAL_SOURCE_DIR "/tests/scenario/scripts"))
    if (entry.path().extension() == ".scenario") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

class Scenario : public ::testing::TestWithParam<std::string> {};

TEST_P(Scenario, ComesTrue) {
  const auto path = std::filesystem::path(SHOAL_SOURCE_DIR "/tests/scenario/scripts") / (GetParam() + ".scenario");
  EXPECT_EQ(RunScript(testing::ReadFile(path)), "");
}

INSTANTIATE_TEST_SUITE_P(Scripts, Scenario, ::testing::ValuesIn(Scripts()),
                         [](const auto& test) { return test.param; });

// The language itself must be able to say no.
TEST(ScenarioLanguage, FailsWithTheLine) {
  EXPECT_EQ(RunScript("add a prompt=3 max=1\nexpect waiting b\n"), "line 2: expect waiting b\n  got: a");
  EXPECT_EQ(RunScript("add a prompt=x\n"), "line 1: add a prompt=x\n  not a number: x");
  EXPECT_EQ(RunScript("dance\n"), "line 1: dance\n  unknown verb dance");
  EXPECT_EQ(RunScript("cancel\n"), "line 1: cancel\n  a word is missing");
  EXPECT_NE(RunScript("refuse a prompt=3 max=1 because out_of_blocks\n"), "");
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int Between(int low, int high) { return low + static_cast<int>(engine_() % static_cast<uint64_t>(high - low + 1)); }
  bool OneIn(int n) { return Between(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

// Worlds of every shape, requests of every kind, arriving, cancelled and stopped at any moment, up to three
// steps in flight. World checks the invariants, the arrival order and each sequence's tokens all along.
class Churn : public ::testing::TestWithParam<uint64_t> {};

TEST_P(Churn, AllEndAndEachGetsWhatItGetsAlone) {
  Random random(GetParam());
  SchedulerOptions options{.max_step_rows = random.Between(1, 80),
                           .max_sequences = random.Between(1, 20),
                           .kv_blocks = random.Between(1, 40),
                           .context = random.Between(8, 300),
                           .vocabulary = 97,
                           .end_tokens = {2},
                           .prefix_cache = random.OneIn(2),
                           .max_draft = random.OneIn(2) ? random.Between(1, kMaxDraft) : 0,
                           .mixed_rows = random.Between(-1, 20)};
  sim::PretendOptions ranks{.kv_blocks = options.kv_blocks,
                            .vocabulary = options.vocabulary,
                            .seed = GetParam(),
                            .end_token = 2,
                            .end_one_in = random.OneIn(3) ? 0 : random.Between(3, 40),
                            .repeat = random.OneIn(2) ? random.Between(1, 9) : 0,
                            .error_one_in = random.OneIn(3) ? random.Between(20, 200) : 0,
                            .base = Nanos(random.Between(0, 1000)),
                            .row = Nanos(random.Between(0, 100))};
  options.steps_at_once = random.Between(1, 4);
  World world(options, ranks);
  world.reverse_results(random.OneIn(2));
  const int most_in_flight = random.Between(1, 3);
  const int requests = random.Between(1, 120);
  int arrived = 0;
  std::vector<SequenceId> accepted;
  int steps = 0;
  while (arrived < requests || !world.scheduler().empty()) {
    ASSERT_EQ(world.problem(), "");
    ASSERT_LT(++steps, 500'000) << "no end in sight";
    if (arrived < requests && random.OneIn(4)) {
      Request request;
      const int most = std::min(options.sequence_limit(), 250);
      if (!accepted.empty() && random.OneIn(2)) {  // begins as another does
        const auto& other =
            world.record(accepted[static_cast<size_t>(random.Between(0, static_cast<int>(accepted.size()) - 1))]);
        request.prompt = other.request.prompt;
        request.prompt.insert(request.prompt.end(), other.generated.begin(), other.generated.end());
        request.prompt.resize(static_cast<size_t>(random.Between(1, static_cast<int>(request.prompt.size()))));
        request.tenant = random.OneIn(8) ? "" : other.request.tenant;
      } else if (random.OneIn(4)) {
        request.tenant = "another";
      }
      const int length = std::max(random.Between(1, most), static_cast<int>(request.prompt.size()));
      while (static_cast<int>(request.prompt.size()) < length) request.prompt.push_back(random.Between(0, 96));
      if (random.OneIn(300)) world.Reset();
      request.max_tokens = random.Between(1, 60);
      request.ignore_eos = random.OneIn(4);
      if (random.OneIn(5)) request.stop_tokens = {random.Between(0, 96)};
      request.sampling.prompt_logprobs = random.OneIn(6);
      if (request.sampling.prompt_logprobs && random.OneIn(2)) request.max_tokens = 0;
      const auto id = world.Add(std::move(request));
      if (id) accepted.push_back(*id);
      ++arrived;
    }
    if (!accepted.empty() && random.OneIn(25)) {
      const SequenceId id = accepted[static_cast<size_t>(random.Between(0, static_cast<int>(accepted.size()) - 1))];
      world.scheduler().Finish(id, random.OneIn(2) ? FinishReason::kCancelled : FinishReason::kStop);
    }
    if (world.scheduler().steps_in_flight() < most_in_flight && !random.OneIn(3)) world.Schedule();
    if (world.scheduler().steps_in_flight() > 0 && random.OneIn(2)) world.Apply();
  }
  ASSERT_EQ(world.problem(), "");
  for (const SequenceId id : accepted) ASSERT_TRUE(world.record(id).end) << id;
  EXPECT_EQ(world.scheduler().stats().blocks_free, options.kv_blocks);
}

INSTANTIATE_TEST_SUITE_P(Seeds, Churn, ::testing::Range<uint64_t>(1, 201));

// The same calls give the same plans.
TEST(Scheduler, IsDeterministic) {
  const auto plans = [] {
    World world({.max_step_rows = 20, .max_sequences = 6, .kv_blocks = 12, .context = 200, .vocabulary = 97},
                {.kv_blocks = 12, .vocabulary = 97});
    std::string text;
    for (int i = 1; i < 60; ++i) {
      Request request;
      request.prompt.assign(static_cast<size_t>(i % 50 + 1), i);
      request.max_tokens = i % 17 + 1;
      EXPECT_TRUE(world.Add(std::move(request)));
      if (world.Schedule()) world.Apply();
      text += ToString(world.decision()) + "\n";
    }
    while (world.Schedule()) {
      world.Apply();
      text += ToString(world.decision()) + "\n";
    }
    EXPECT_EQ(world.problem(), "");
    return text;
  };
  EXPECT_EQ(plans(), plans());
}

}  // namespace
}  // namespace shoal::scenario
