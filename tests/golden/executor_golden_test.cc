// The executor against llama.cpp's recorded outputs, and against itself: the same bits for every split, batch and chunking.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>

#include "tests/golden/golden_support.h"
#include "tests/support/shared.h"

namespace shoal::testing {
namespace {

std::vector<std::string> Files(const std::string& folder, const std::string& end) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(SharedPath(folder), error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(end)) names.push_back(name.substr(0, name.size() - end.size()));
  }
  std::ranges::sort(names);
  if (names.empty()) names.push_back("missing");
  return names;
}

// Differences between our log-probabilities and the reference's.
struct Spread {
  double largest = 0;
  double sum = 0;
  int count = 0;
  int beyond = 0;        // more than 2e-3
  int other_greedy = 0;  // steps whose most likely token is another
  double behind = 0;     // by how much the reference's choice was behind ours in those, at most
  int steps = 0;
  void Add(double difference) {
    largest = std::max(largest, difference);
    sum += difference;
    ++count;
    beyond += difference > 2e-3;
  }
  double mean() const { return count > 0 ? sum / count : 0; }
};

std::ostream& operator<<(std::ostream& out, const Spread& s) {
  return out << "max " << s.largest << ", mean " << s.mean() << ", " << 100.0 * s.beyond / std::max(1, s.count)
             << " % beyond 2e-3, other greedy token in " << s.other_greedy << " of " << s.steps << " steps"
             << (s.other_greedy > 0 ? " by at most " + std::to_string(s.behind) : "");
}

// The largest and summed difference of one step's recorded log-probabilities.
Spread Difference(const GoldenStep& step, const std::vector<double>& logprobs) {
  Spread spread;
  for (const auto& [token, expected] : step.top) spread.Add(std::abs(logprobs[static_cast<size_t>(token)] - expected));
  return spread;
}

// Which token each recorded step belongs to: the order-preserving match of equal ids. Where a token repeats and one of the
// repeats was not recorded there are several matches; the one with the least difference counts.
std::vector<size_t> MatchSteps(const GoldenCase& one, const std::vector<std::vector<double>>& logprobs) {
  const size_t tokens = one.tokens.size(), steps = one.steps.size();
  constexpr double kNever = 1e30;
  std::vector<std::vector<double>> cost(steps + 1, std::vector<double>(tokens + 1, kNever));
  std::fill(cost[steps].begin(), cost[steps].end(), 0.0);
  for (size_t s = steps; s-- > 0;) {
    for (size_t t = tokens; t-- > 0;) {
      cost[s][t] = cost[s][t + 1];
      if (one.tokens[t] == one.steps[s].id && cost[s + 1][t + 1] < kNever)
        cost[s][t] = std::min(cost[s][t], cost[s + 1][t + 1] + Difference(one.steps[s], logprobs[t]).sum);
    }
  }
  std::vector<size_t> match;
  for (size_t s = 0, t = 0; s < steps && t < tokens; ++t) {
    if (cost[s][t] == cost[s][t + 1]) continue;
    match.push_back(t);
    ++s;
  }
  return match;
}

// Feeds the reference's own tokens (so that one other choice does not change all that follows) and compares each recorded
// step's top log-probabilities.
struct Comparison {
  Spread spread;
  std::vector<std::vector<std::vector<double>>> logprobs;  // [case][token][vocabulary]
};

Comparison Compare(const ModelSpec& spec, TensorSource& source, const std::vector<GoldenCase>& cases,
                   KvType kv_type = KvType::kF16) {
  Comparison result;
  Spread& spread = result.spread;
  GoldenGroup group(spec, source, {{0, kSlices}}, 1, static_cast<int>(cases.size()), kv_type);
  if (!group.ok()) return result;
  for (size_t c = 0; c < cases.size(); ++c) {
    const auto& one = cases[c];
    std::vector<std::vector<double>> logprobs;
    std::vector<float> logits = group.Feed(static_cast<int>(c), one.prompt_ids);
    for (size_t i = 0; i < one.tokens.size(); ++i) {
      logprobs.push_back(LogSoftmax(logits));
      const double behind =
          logprobs.back()[static_cast<size_t>(Greedy(logits))] - logprobs.back()[static_cast<size_t>(one.tokens[i])];
      spread.other_greedy += Greedy(logits) != one.tokens[i];
      spread.behind = std::max(spread.behind, behind);
      ++spread.steps;
      if (i + 1 < one.tokens.size()) logits = group.Feed(static_cast<int>(c), std::span(&one.tokens[i], 1));
    }
    const auto match = MatchSteps(one, logprobs);
    EXPECT_EQ(match.size(), one.steps.size());
    for (size_t s = 0; s < match.size(); ++s) {
      const auto step = Difference(one.steps[s], logprobs[match[s]]);
      spread.largest = std::max(spread.largest, step.largest);
      spread.sum += step.sum;
      spread.count += step.count;
      spread.beyond += step.beyond;
    }
    result.logprobs.push_back(std::move(logprobs));
  }
  return result;
}

// Between two runs of ours over the same tokens: of the tokens the reference lists.
Spread Between(const Comparison& a, const Comparison& b, const std::vector<GoldenCase>& cases) {
  Spread spread;
  for (size_t c = 0; c < cases.size(); ++c) {
    const auto match = MatchSteps(cases[c], b.logprobs[c]);
    for (size_t s = 0; s < match.size(); ++s)
      for (const auto& [token, unused] : cases[c].steps[s].top)
        spread.Add(std::abs(a.logprobs[c][match[s]][static_cast<size_t>(token)] -
                            b.logprobs[c][match[s]][static_cast<size_t>(token)]));
  }
  return spread;
}

class GoldenArch : public ::testing::TestWithParam<std::string> {};

// The arithmetic of the reference is ours up to the order of sums: f16 keys, values, queries and attention weights, f32
// elsewhere. A sum in another order moves a few of the values that are rounded to f16 to the other side, and there they
// stay in the cache: the reference's own AVX2 code differs from its AVX-512 code, which made the files, by up to 6e-3 in
// the trained models and 1.5e-2 in qwen2moe (docs/decisions/0003-attention-weights-in-f16.md has both for each
// file). So: the greedy ids are the reference's in every step, the mean difference is far below 2e-3 everywhere, and the
// largest one is below 2e-3 but where the reference is beyond that itself or near it.
struct Tolerance {
  double largest = 2e-3;
  double mean = 3e-4;
};
Tolerance ToleranceOf(const std::string& file) {
  static const auto& named = *new std::map<std::string, Tolerance>{
      {"stories260K-f32", {6e-3, 4e-4}},
      {"stories3M-f32", {8e-3, 1e-3}},
      {"babyllama-tok105-f32", {7e-3, 5e-4}},
      {"llama-rope-theta-tied", {8e-3, 1e-3}},  // logits of wide spread: log-probabilities down to -20 in the ten best
      {"qwen2moe", {2e-2, 1e-3}},               // the same
      {"qwen3", {4e-3, 6e-4}},
      {"qwen2", {4e-3, 4e-4}},
      {"llama-odd-heads", {5e-3, 4e-4}},
      {"llama-gqa", {4e-3, 3e-4}},
      {"smollm3", {4e-3, 4e-4}},
      {"gemma2", {3e-3, 4e-4}},
      {"mixtral", {3e-3, 3e-4}},
  };
  const auto it = named.find(file);
  return it == named.end() ? Tolerance{} : it->second;
}

void ExpectF32Agrees(const std::filesystem::path& model_path, const std::filesystem::path& golden_path) {
  SHOAL_REQUIRE_SHARED(model_path);
  SHOAL_REQUIRE_SHARED(golden_path);
  const auto model = OpenModel(model_path);
  ASSERT_NE(model.file, nullptr);
  FileSource source(model.file);
  const auto cases = ReadGolden(golden_path);
  const auto spread = Compare(model.spec, source, cases).spread;
  std::cout << golden_path.filename().string() << ": " << spread << "\n";
  std::string file = golden_path.filename().string();
  file.resize(file.size() - std::string(".golden.json").size());
  const auto tolerance = ToleranceOf(file);
  EXPECT_GT(spread.steps, 0);
  EXPECT_EQ(spread.other_greedy, 0);
  EXPECT_LT(spread.largest, tolerance.largest);
  EXPECT_LT(spread.mean(), tolerance.mean);
}

TEST_P(GoldenArch, AgreesWithTheReference) {
  ExpectF32Agrees(SharedPath("golden/arch/" + GetParam() + ".gguf"),
                  SharedPath("golden/arch/" + GetParam() + ".golden.json"));
}

std::string CaseName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenArch, ::testing::ValuesIn(Files("golden/arch", ".golden.json")), CaseName);

TEST(GoldenTrained, Stories260K) {
  ExpectF32Agrees(SharedPath("models/llama-stories260K/stories260K-f32.gguf"),
                  SharedPath("golden/stories260K-f32.golden.json"));
}
TEST(GoldenTrained, Stories3M) {
  ExpectF32Agrees(SharedPath("models/llama-stories3M/stories3M-f32.gguf"),
                  SharedPath("golden/stories3M-f32.golden.json"));
}
TEST(GoldenTrained, BabyLlama) {
  ExpectF32Agrees(SharedPath("models/llama-babyllama-tok105/babyllama-tok105-f32.gguf"),
                  SharedPath("golden/babyllama-tok105-f32.golden.json"));
}

// With an f32 cache on both sides no sum is rounded to fewer bits on its way, so what is left is the order of sums: some
// 1e-5, in stories3M nearly the same for all ten of a step: it is in the sum that normalises them. But GELU: the reference
// reads it from a table over halves and we round as it does, so there a sum can still fall to the other side. The reference was run with `-ctk f32 -ctv f32` on the files above
// (`bench/run reference` makes the recording anew from it and runs these tests on that).
std::filesystem::path RecordedF32() {
  const char* other = std::getenv("SHOAL_GOLDEN_F32_CACHE");
  return other != nullptr ? std::filesystem::path(other)
                          : std::filesystem::path(SHOAL_SOURCE_DIR) / "tests/golden/f32_cache.json";
}

std::vector<std::string> RecordedModels() {
  std::vector<std::string> names;
  for (const auto& [name, unused] : ReadRecorded(RecordedF32())) names.push_back(name);
  return names;
}

std::filesystem::path ModelOf(const std::string& name) {
  static const auto& trained = *new std::map<std::string, std::string>{
      {"stories260K-f32", "models/llama-stories260K/"},
      {"stories3M-f32", "models/llama-stories3M/"},
      {"babyllama-tok105-f32", "models/llama-babyllama-tok105/"},
  };
  const auto it = trained.find(name);
  return SharedPath((it != trained.end() ? it->second : "golden/arch/") + name + ".gguf");
}

class GoldenF32Cache : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenF32Cache, AgreesUpToTheOrderOfSums) {
  const auto path = ModelOf(GetParam());
  SHOAL_REQUIRE_SHARED(path);
  const auto model = OpenModel(path);
  ASSERT_NE(model.file, nullptr);
  FileSource source(model.file);
  const auto cases = ReadRecorded(RecordedF32()).at(GetParam());
  const auto spread = Compare(model.spec, source, cases, KvType::kF32).spread;
  std::cout << GetParam() << ", f32 cache: " << spread << "\n";
  EXPECT_GT(spread.steps, 0);
  EXPECT_EQ(spread.other_greedy, 0);
  const bool halves = model.spec.activation == Activation::kGelu;
  EXPECT_LT(spread.largest, halves ? 1e-3 : 1e-4);
  EXPECT_LT(spread.mean(), halves ? 2e-4 : 2e-5);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenF32Cache, ::testing::ValuesIn(RecordedModels()), CaseName);

// Quantised weights. The reference rounds activations to 8 bits, a scale for 32 values (for 256 with K-quants); we do so
// with 32 always. Three differences tell rounding from bugs: ours to the model widened to f32 (our rounding alone), the
// widened one to the reference (its rounding alone, and whether we read the weights as it does), ours to the reference.
// With f16 and bf16 weights the reference rounds activations to the type of the weights, we not at all.
Tolerance QuantisedToleranceOf(const std::string& file) {
  if (file.find("-f32.") != std::string::npos) return {};
  if (file.find("-f16.") != std::string::npos) return {2e-2, 4e-3};
  if (file.find("-bf16.") != std::string::npos) return {9e-2, 2e-2};
  return {0.6, 0.1};
}

void ExpectQuantisedAgrees(const std::filesystem::path& model_path, const std::filesystem::path& golden_path) {
  SHOAL_REQUIRE_SHARED(model_path);
  SHOAL_REQUIRE_SHARED(golden_path);
  const auto model = OpenModel(model_path);
  ASSERT_NE(model.file, nullptr);
  const auto cases = ReadGolden(golden_path);
  FileSource source(model.file);
  const auto ours = Compare(model.spec, source, cases);
  WidenedSource wide(model);
  const auto widened = Compare(wide.spec(), wide, cases);
  const auto rounding = Between(ours, widened, cases);
  std::cout << golden_path.filename().string() << ": to the reference " << ours.spread << "; to the widened model max "
            << rounding.largest << ", mean " << rounding.mean() << "; widened to the reference " << widened.spread
            << "\n";
  EXPECT_GT(ours.spread.steps, 0);
  const auto tolerance = QuantisedToleranceOf(golden_path.filename().string());
  EXPECT_LT(widened.spread.largest, tolerance.largest);
  EXPECT_LT(widened.spread.mean(), tolerance.mean);
  EXPECT_LT(rounding.mean(), std::max(1.25 * widened.spread.mean(), 1e-4));
  EXPECT_LT(ours.spread.largest, tolerance.largest);
  EXPECT_LT(ours.spread.mean(), tolerance.mean);
}

class GoldenQuant : public ::testing::TestWithParam<std::string> {};
TEST_P(GoldenQuant, AgreesWithinActivationRounding) {
  ExpectQuantisedAgrees(SharedPath("golden/quant/" + GetParam() + ".gguf"),
                        SharedPath("golden/quant/" + GetParam() + ".golden.json"));
}
INSTANTIATE_TEST_SUITE_P(All, GoldenQuant, ::testing::ValuesIn(Files("golden/quant", ".golden.json")), CaseName);

TEST(GoldenTrained, Stories3MQ8) {
  ExpectQuantisedAgrees(SharedPath("models/llama-stories3M/stories3M-q8_0.gguf"),
                        SharedPath("golden/stories3M-q8_0.golden.json"));
}

// --- Exactness ---------------------------------------------------------------------------------------------------------

struct Split {
  std::string name;
  std::vector<SliceRun> runs;
};

std::vector<Split> Splits() {
  std::vector<Split> splits;
  for (const int ranks : {2, 3, 4, 7, 16})
    splits.push_back(
        {std::to_string(ranks) + " ranks", ShareSlices(std::vector<double>(static_cast<size_t>(ranks), 1))});
  splits.push_back({"unequal", ShareSlices({5, 1, 3})});
  splits.push_back({"with empty shares", {{0, 0}, {0, 3}, {3, 3}, {3, 16}, {16, 16}}});
  return splits;
}

class Exact : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int kSteps = 6;

  void SetUp() override {
    path_ = SharedPath(GetParam());
    SHOAL_REQUIRE_SHARED(path_);
    model_ = OpenModel(path_);
    ASSERT_NE(model_.file, nullptr);
    source_ = std::make_unique<FileSource>(model_.file);
    for (int i = 0; i < 70; ++i) prompt_.push_back((i * 7919 + 3) % model_.spec.n_vocab);
  }

  // The logits of the prompt's last row and of some greedy steps.
  std::vector<std::vector<float>> Generate(GoldenGroup& group, int sequence, int chunk) {
    std::vector<std::vector<float>> all{group.Feed(sequence, prompt_, chunk)};
    for (int i = 0; i < kSteps; ++i) {
      const TokenId next = Greedy(all.back());
      all.push_back(group.Feed(sequence, std::span(&next, 1)));
    }
    return all;
  }

  std::filesystem::path path_;
  GoldenModel model_;
  std::unique_ptr<FileSource> source_;
  std::vector<TokenId> prompt_;
};

TEST_P(Exact, LogitsDoNotDependOnSplitThreadsOrChunks) {
  std::vector<std::vector<float>> reference;
  {
    GoldenGroup alone(model_.spec, *source_, {{0, kSlices}}, 1, 1);
    ASSERT_TRUE(alone.ok());
    reference = Generate(alone, 0, 0);
  }
  for (const int threads : {1, 2}) {
    GoldenGroup alone(model_.spec, *source_, {{0, kSlices}}, threads, 4);
    ASSERT_TRUE(alone.ok());
    int sequence = 0;
    for (const int chunk : {1, 7, 64, 0})
      EXPECT_TRUE(Generate(alone, sequence++, chunk) == reference) << threads << " threads, chunks of " << chunk;
  }
  for (const auto& split : Splits()) {
    const int threads = split.runs.size() <= 3 ? 2 : 1;
    GoldenGroup group(model_.spec, *source_, split.runs, threads, 2);
    ASSERT_TRUE(group.ok());
    EXPECT_TRUE(Generate(group, 0, 0) == reference) << split.name;
    EXPECT_TRUE(Generate(group, 1, 7) == reference) << split.name << ", chunks of 7";
  }
}

TEST_P(Exact, LogitsDoNotDependOnTheBatch) {
  for (const auto& runs : {std::vector<SliceRun>{{0, kSlices}}, std::vector<SliceRun>{{0, 11}, {11, kSlices}}}) {
    GoldenGroup group(model_.spec, *source_, runs, 2, 9);
    ASSERT_TRUE(group.ok());
    const auto reference = Generate(group, 8, 0);
    // Eight sequences; the first is ours. The others have prompts of other lengths, and all decode together.
    std::vector<Chunk> chunks{{0, prompt_}};
    for (int s = 1; s < 8; ++s) {
      Chunk other{s, {}};
      for (int i = 0; i < 5 * s; ++i) other.tokens.push_back((i * 31 + s) % model_.spec.n_vocab);
      chunks.push_back(std::move(other));
    }
    auto logits = group.Step(chunks);
    EXPECT_TRUE(logits[0] == reference[0]);
    for (int i = 0; i < kSteps; ++i) {
      for (size_t s = 0; s < chunks.size(); ++s) chunks[s].tokens = {Greedy(logits[s])};
      logits = group.Step(chunks);
      EXPECT_TRUE(logits[0] == reference[static_cast<size_t>(i + 1)]) << "step " << i;
    }
  }
}

// What memory is planned with before a model is loaded is what it takes then, whatever its types become when they are packed.
TEST(Resident, WeightsAreWhatWasReckoned) {
  for (const char* type : {"q2_k", "q3_k_m", "q4_k_m", "q6_k", "q8_0", "f16"}) {
    const auto path = SharedPath(std::string("golden/quant/llama-d256-") + type + ".gguf");
    SHOAL_REQUIRE_SHARED(path);
    const auto model = OpenModel(path);
    ASSERT_NE(model.file, nullptr);
    FileSource source(model.file);
    GoldenGroup group(model.spec, source, {{0, kSlices}}, 1, 1);
    const RankShare whole{{0, kSlices}, 0, model.spec.n_layers};
    EXPECT_NEAR(static_cast<double>(ShareWeightBytes(model.spec, whole)) /
                    static_cast<double>(group.executor(0).weight_bytes()),
                1, 0.02)
        << type;
  }
}

// A rank keeps its share of the weights and little else.
TEST(Resident, WeightsAreTheShare) {
  const auto path = SharedPath("models/llama-stories3M/stories3M-q8_0.gguf");
  SHOAL_REQUIRE_SHARED(path);
  const auto model = OpenModel(path);
  ASSERT_NE(model.file, nullptr);
  FileSource source(model.file);
  GoldenGroup alone(model.spec, source, {{0, kSlices}}, 1, 1);
  ASSERT_TRUE(alone.ok());
  const double all = static_cast<double>(alone.executor(0).weight_bytes());
  for (const int ranks : {2, 4}) {
    GoldenGroup group(model.spec, source, ShareSlices(std::vector<double>(static_cast<size_t>(ranks), 1)), 1, 1);
    ASSERT_TRUE(group.ok());
    for (int r = 0; r < ranks; ++r) {
      const double part = static_cast<double>(group.executor(r).weight_bytes()) / all;
      std::cout << "rank " << r << " of " << ranks << ": " << part << " of the whole\n";
      // Six heads and two KV heads do not divide by four: a rank may hold a KV head that another holds too.
      EXPECT_LT(part, 1.0 / ranks + 0.06);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Exact,
                         ::testing::Values("models/llama-stories3M/stories3M-f32.gguf",
                                           "models/llama-stories3M/stories3M-q8_0.gguf",
                                           "golden/arch/llama-odd-heads.gguf", "golden/arch/qwen3moe.gguf",
                                           "golden/arch/qwen2moe.gguf", "golden/arch/gemma3.gguf",
                                           "golden/arch/gpt2.gguf", "golden/arch/olmo2.gguf",
                                           "golden/quant/llama-d256-q4_k_m.gguf"),
                         CaseName);

}  // namespace
}  // namespace shoal::testing
