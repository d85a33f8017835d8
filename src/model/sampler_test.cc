#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "core/reasons.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();

SamplingParams Greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

SamplingParams Random(float temperature = 1) {
  SamplingParams p;
  p.temperature = temperature;
  return p;
}

TokenId Token(const std::vector<float>& logits, const SamplingParams& p, const std::vector<TokenId>& history = {0},
              int prompt_length = 1, const std::vector<TokenId>& forbidden = {}) {
  const SampledToken token = Sample(logits, p, history, prompt_length, forbidden);
  EXPECT_FALSE(token.error.has_value()) << ToString(*token.error);
  return token.token;
}

// How often each token comes at positions 1..draws.
std::map<TokenId, int> Counts(const std::vector<float>& logits, SamplingParams p, int draws,
                              const std::vector<TokenId>& forbidden = {}) {
  std::map<TokenId, int> counts;
  std::vector<TokenId> history;
  for (int i = 0; i < draws; ++i) {
    history.push_back(0);
    const SampledToken token = Sample(logits, p, history, static_cast<int>(history.size()), forbidden);
    EXPECT_FALSE(token.error.has_value());
    ++counts[token.token];
  }
  return counts;
}

std::set<TokenId> Support(const std::vector<float>& logits, const SamplingParams& p, int draws = 400) {
  std::set<TokenId> tokens;
  for (const auto& [token, n] : Counts(logits, p, draws)) tokens.insert(token);
  return tokens;
}

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3);
  return logits;
}

TEST(Sampler, GreedyTakesTheHighestAndTheLowestIdOnATie) {
  EXPECT_EQ(Token({1, 5, 3}, Greedy()), 1);
  EXPECT_EQ(Token({-7, -3, -5, -3}, Greedy()), 1);
  EXPECT_EQ(Token({2, 2, 2}, Greedy()), 0);
  std::vector<float> many(1000, -4.0f);
  many[777] = many[801] = 1.5f;
  EXPECT_EQ(Token(many, Greedy()), 777);
  EXPECT_EQ(Token({0.0f, -0.0f}, Greedy()), 0);
  EXPECT_EQ(Token({-0.0f, 0.0f}, Greedy()), 0);
}

TEST(Sampler, TopKOneIsGreedyAtAnyTemperature) {
  SamplingParams p = Random(2);
  p.top_k = 1;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    p.seed = seed;
    EXPECT_EQ(Token({1, 5, 5, 3}, p), 1);
  }
}

TEST(Sampler, DrawsWithTheProbabilitiesOfTheSoftmax) {
  const std::vector<double> probabilities{0.5, 0.25, 0.125, 0.0625, 0.0625};
  const std::vector<float> logits = LogitsOf(probabilities);
  for (const uint64_t seed : {0u, 1u, 12345u}) {
    SamplingParams p = Random();
    p.seed = seed;
    const int draws = 4000;
    double chi2 = 0;
    const auto counts = Counts(logits, p, draws);
    for (size_t i = 0; i < probabilities.size(); ++i) {
      const double expected = probabilities[i] * draws;
      const auto it = counts.find(static_cast<TokenId>(i));
      const double difference = (it == counts.end() ? 0 : it->second) - expected;
      chi2 += difference * difference / expected;
    }
    EXPECT_LT(chi2, 18.5) << seed;  // 4 degrees of freedom, p = 0.001
  }
}

TEST(Sampler, TemperatureSharpensAndFlattens) {
  const std::vector<float> logits = LogitsOf({0.8, 0.2});
  // At temperature T the ratio is 4^(1/T): 16 at 0.5, 2 at 2.
  EXPECT_NEAR(Counts(logits, Random(0.5f), 4000)[0] / 4000.0, 16.0 / 17, 0.015);
  EXPECT_NEAR(Counts(logits, Random(2.0f), 4000)[0] / 4000.0, 2.0 / 3, 0.03);
}

TEST(Sampler, TinyTemperaturesDoNotOverflow) {
  const float large = 3e38f;
  for (const float temperature : {1e-6f, 1e-30f, 1e-45f}) {
    SamplingParams p = Random(temperature);
    p.top_p = 0.9f;
    p.min_p = 0.1f;
    EXPECT_EQ(Token({1, 2, 3, 2}, p), 2);
    EXPECT_EQ(Token({-large, large, 0}, p), 1);
    EXPECT_EQ(Support({4, 4}, Random(temperature), 64), (std::set<TokenId>{0, 1}));
  }
  EXPECT_EQ(Support({1, 2}, Random(kInf), 64), (std::set<TokenId>{0, 1}));
}

TEST(Sampler, TheRandomNumberIsKeyedByPositionAndSeedOnly) {
  std::vector<float> logits(500);
  std::iota(logits.begin(), logits.end(), 0.0f);
  for (float& x : logits) x = std::sin(x);
  SamplingParams p = Random();
  p.seed = 42;
  const std::vector<TokenId> a(10, 1), b(10, 2), longer(11, 1);
  EXPECT_EQ(Token(logits, p, a, 3), Token(logits, p, b, 10));
  EXPECT_EQ(Token(logits, p, a, 3), Token(logits, p, a, 3));
  std::set<TokenId> by_position, by_seed;
  for (int n = 1; n < 60; ++n) by_position.insert(Token(logits, p, std::vector<TokenId>(static_cast<size_t>(n), 1)));
  for (p.seed = 0; p.seed < 60; ++p.seed) by_seed.insert(Token(logits, p, a));
  EXPECT_GT(by_position.size(), 40u);
  EXPECT_GT(by_seed.size(), 40u);
}

TEST(Sampler, UniformNumbersAreTheDocumentedOnes) {
  // Pinned: a change would change the tokens of every seeded request.
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  EXPECT_EQ(mix(0x9e3779b97f4a7c15), 0xe220a8397b1dcdafu);  // SplitMix64's first number of seed 0
  EXPECT_EQ(UniformAt(0, 0), static_cast<double>(mix(0xe220a8397b1dcdaf + 0x9e3779b97f4a7c15) >> 11) * 0x1p-53);
  double sum = 0, low = 1, high = 0;
  int runs = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (uint64_t position = 0; position < 500; ++position) {
      const double u = UniformAt(seed, position);
      ASSERT_GE(u, 0);
      ASSERT_LT(u, 1);
      sum += u;
      low = std::min(low, u);
      high = std::max(high, u);
      runs += (u < 0.5) != (UniformAt(seed, position + 1) < 0.5);
    }
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
  EXPECT_LT(low, 0.001);
  EXPECT_GT(high, 0.999);
  EXPECT_NEAR(runs / 10000.0, 0.5, 0.02);
  EXPECT_NE(UniformAt(0, 1), UniformAt(1, 0));
}

TEST(Sampler, TopKKeepsTheMostLikelyAndOfTiesTheLowestIds) {
  SamplingParams p = Random(2);
  p.top_k = 3;
  EXPECT_EQ(Support({1, 2, 2, 2, 2, 0}, p), (std::set<TokenId>{1, 2, 3}));
  p.top_k = 2;
  EXPECT_EQ(Support({1, 1.5f, 3, 2.9f, -2}, p), (std::set<TokenId>{2, 3}));
  // Many equal values, more than fit before the selection is cut.
  std::vector<float> flat(3000, 1.0f);
  p.top_k = 5;
  EXPECT_EQ(Support(flat, p), (std::set<TokenId>{0, 1, 2, 3, 4}));
  flat[2999] = 1.1f;
  EXPECT_EQ(Support(flat, p), (std::set<TokenId>{0, 1, 2, 3, 2999}));
}

TEST(Sampler, TopKSelectsAsAFullSortDoes) {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    const size_t n = 600 + random() % 2000;
    std::vector<float> logits(n);
    for (float& x : logits) x = static_cast<float>(static_cast<int>(random() % 400)) / 8;  // with ties
    std::vector<TokenId> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const int k = 1 + static_cast<int>(random() % 500);
    const Logprobs logprobs = ComputeLogprobs(logits, 0, k);
    ASSERT_EQ(logprobs.top.size(), static_cast<size_t>(k));
    for (size_t i = 0; i < logprobs.top.size(); ++i) ASSERT_EQ(logprobs.top[i].token, order[i]) << i;
  }
}

TEST(Sampler, TopKBeyondTheVocabularyIsAll) {
  std::vector<float> logits(100);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::cos(static_cast<float>(i));
  SamplingParams all = Random(), k = Random();
  for (const int top_k : {100, 101, std::numeric_limits<int>::max()}) {
    k.top_k = top_k;
    for (all.seed = k.seed = 0; all.seed < 50; all.seed = ++k.seed) EXPECT_EQ(Token(logits, all), Token(logits, k));
  }
}

TEST(Sampler, TopPKeepsTheFewestThatReachTheShare) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.3});
  SamplingParams p = Random();
  p.top_p = 0.69f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{1, 3}));
  p.top_p = 0.71f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{1, 2, 3}));
  p.top_p = 0.39f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{1}));
  p.top_p = 0.999f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{0, 1, 2, 3}));
}

TEST(Sampler, TopPZeroKeepsOne) {
  SamplingParams p = Random(2);
  p.top_p = 0;
  EXPECT_EQ(Support({1, 1.01f, 1.01f, 0}, p), (std::set<TokenId>{1}));
}

TEST(Sampler, TopPBreaksTiesByLowerId) {
  SamplingParams p = Random();
  p.top_p = 0.45f;  // of 10 equal ones: 5
  EXPECT_EQ(Support(std::vector<float>(10, 2.5f), p), (std::set<TokenId>{0, 1, 2, 3, 4}));
}

TEST(Sampler, TopPAgreesWithAFullSort) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 3);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(300);
    for (float& x : logits) x = normal(random);
    SamplingParams p = Random(1.3f);
    p.top_p = static_cast<float>(random() % 1000) / 1000;
    std::vector<TokenId> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](TokenId a, TokenId b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    double total = 0, reached = 0;
    const auto weight = [&](TokenId t) {
      return std::exp(double{logits[static_cast<size_t>(t)]} / double{p.temperature});
    };
    for (const TokenId t : order) total += weight(t);
    std::set<TokenId> nucleus;
    for (const TokenId t : order) {
      nucleus.insert(t);
      if ((reached += weight(t)) >= static_cast<double>(p.top_p) * total) break;
    }
    const std::set<TokenId> drawn = Support(logits, p, 300);
    EXPECT_TRUE(std::includes(nucleus.begin(), nucleus.end(), drawn.begin(), drawn.end()));
  }
}

TEST(Sampler, TopPIsTakenOfWhatTopKLeft) {
  // Of {0.4, 0.3} alone, 0.4 is 57 %: enough for top_p 0.5, though it is less than half of all.
  SamplingParams p = Random();
  p.top_k = 2;
  p.top_p = 0.5f;
  EXPECT_EQ(Support(LogitsOf({0.1, 0.4, 0.2, 0.3}), p), (std::set<TokenId>{1}));
}

TEST(Sampler, TopPIsTakenAfterTemperature) {
  SamplingParams p = Random(2);
  p.top_p = 0.6f;  // 0.8 at temperature 1, 0.67 at 2
  EXPECT_EQ(Support(LogitsOf({0.8, 0.2}), p), (std::set<TokenId>{0}));
  p.top_p = 0.7f;
  EXPECT_EQ(Support(LogitsOf({0.8, 0.2}), p), (std::set<TokenId>{0, 1}));
}

TEST(Sampler, MinPIsRelativeToTheMostLikely) {
  const std::vector<float> logits = LogitsOf({0.5, 0.26, 0.14, 0.1});
  SamplingParams p = Random();
  p.min_p = 0.5f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{0, 1}));
  p.min_p = 0.25f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{0, 1, 2}));
  p.min_p = 1.0f;
  EXPECT_EQ(Support(logits, p), (std::set<TokenId>{0}));
  EXPECT_EQ(Support({3, 3, 1}, p), (std::set<TokenId>{0, 1}));  // equally likely ones stay
}

TEST(Sampler, LogitBiasComesFirst) {
  SamplingParams p = Greedy();
  p.logit_bias = {{2, 10.0f}, {99, 1000.0f}, {-1, 1000.0f}};
  EXPECT_EQ(Token({1, 5, 3}, p), 2);
  // Biased to 8, halved by the repeat penalty to 4: less than 5. The other way round it would be 1 + 6 = 7.
  p.logit_bias = {{0, 6.0f}};
  p.repeat_penalty = 2;
  EXPECT_EQ(Token({2, 5}, p, {0}, 1), 1);
}

TEST(Sampler, RepeatPenaltyLooksAtTheLastOfTheWholeHistory) {
  SamplingParams p = Greedy();
  p.repeat_penalty = 2;
  EXPECT_EQ(Token({4, 3}, p, {0}, 1), 1);           // a prompt token counts
  EXPECT_EQ(Token({4, 1.5f}, p, {0, 0, 0}, 1), 0);  // but once only
  EXPECT_EQ(Token({-1, -1.5f}, p, {0}, 1), 1);      // negative logits are multiplied
  p.repeat_last_n = 2;
  EXPECT_EQ(Token({4, 3, 0}, p, {0, 2, 2}, 1), 0);
  EXPECT_EQ(Token({4, 3, 0}, p, {2, 0, 2}, 1), 1);
  p.repeat_last_n = 0;
  EXPECT_EQ(Token({4, 3}, p, {0}, 1), 0);
  p.repeat_last_n = -1;
  EXPECT_EQ(Token({4, 3, 0}, p, {0, 2, 2, 2, 2}, 1), 1);
}

TEST(Sampler, PresenceAndFrequencyCountGeneratedTokensOnly) {
  SamplingParams presence = Greedy();
  presence.presence_penalty = 1.5f;
  EXPECT_EQ(Token({4, 3}, presence, {0, 0}, 2), 0);
  EXPECT_EQ(Token({4, 3}, presence, {1, 0}, 1), 1);
  EXPECT_EQ(Token({4, 2}, presence, {1, 0, 0, 0}, 1), 0);  // once
  SamplingParams frequency = Greedy();
  frequency.frequency_penalty = 0.6f;
  EXPECT_EQ(Token({4, 3}, frequency, {1, 0}, 1), 0);
  EXPECT_EQ(Token({4, 3}, frequency, {1, 0, 0}, 1), 1);
  frequency.frequency_penalty = -0.6f;
  EXPECT_EQ(Token({3, 4}, frequency, {1, 0, 0}, 1), 0);
  EXPECT_EQ(Token({4, 3}, frequency, {0, 0, 7, -3}, 99),
            0);  // a prompt length beyond the history, foreign ids
}

TEST(Sampler, RepeatPenaltyComesBeforePresence) {
  SamplingParams p = Greedy();
  p.repeat_penalty = 2;
  p.presence_penalty = 1;
  // 6 / 2 - 1 = 2 against 2.2; the other way round (6 - 1) / 2 = 2.5.
  EXPECT_EQ(Token({6, 2.2f}, p, {5, 0}, 1), 1);
}

TEST(Sampler, PenaltiesLeaveNothingBehindForTheNextCall) {
  SamplingParams p = Greedy();
  p.frequency_penalty = 1;
  EXPECT_EQ(Token({4, 3}, p, {1, 0, 0}, 1), 1);
  EXPECT_EQ(Token({4, 3}, p, {1}, 1), 0);
}

TEST(Sampler, ForbiddenTokensAreNeverDrawn) {
  EXPECT_EQ(Token({9, 5, 3}, Greedy(), {0}, 1, {0}), 1);
  SamplingParams p = Random();
  p.logit_bias = {{0, 1000.0f}};
  for (const auto& [token, n] : Counts({9, 5, 3}, p, 100, {0, 55, -7})) EXPECT_NE(token, 0);
}

void ExpectReason(const SampledToken& token, Reason reason) {
  ASSERT_TRUE(token.error.has_value());
  EXPECT_EQ(token.error->reason, reason) << ToString(*token.error);
}

TEST(Sampler, NothingLeftIsAnError) {
  const std::vector<float> logits{1, 2};
  const std::vector<TokenId> history{0}, both{0, 1};
  ExpectReason(Sample(logits, Greedy(), history, 1, both), reasons::kInvalidValue);
  ExpectReason(Sample(logits, Random(), history, 1, both), reasons::kInvalidValue);
  SamplingParams p = Random();
  p.logit_bias = {{0, -kInf}, {1, -kInf}};
  p.repeat_penalty = 1.5f;
  ExpectReason(Sample(logits, p, history, 1, {}), reasons::kInvalidValue);
  p.top_k = 1;
  ExpectReason(Sample(logits, p, history, 1, {}), reasons::kInvalidValue);
  ExpectReason(Sample({}, Greedy(), history, 1, {}), reasons::kInvalidValue);
}

TEST(Sampler, NonFiniteLogitsAreAnError) {
  const std::vector<TokenId> history{0};
  for (const float bad :
       {kInf, -kInf, std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {0u, 7u, 16u, 40u}) {
      std::vector<float> logits(41, 1.0f);
      logits[at] = bad;
      EXPECT_FALSE(AllFinite(logits));
      ExpectReason(Sample(logits, Greedy(), history, 1, {}), reasons::kModelProducedNan);
      ExpectReason(Sample(logits, Random(), history, 1, {}), reasons::kModelProducedNan);
    }
  }
  EXPECT_TRUE(AllFinite(std::vector<float>{3.4e38f, -3.4e38f, 1e-45f, 0}));
}

TEST(Sampler, HostileParametersStillGiveATokenOrAnError) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float x : {nan, kInf, -kInf, 3e38f, -3e38f, -1.0f, 0.0f}) {
    SamplingParams p;
    p.temperature = p.top_p = p.min_p = p.presence_penalty = p.frequency_penalty = p.repeat_penalty = x;
    p.logit_bias = {{0, x}, {1, -x}, {0, x}};
    for (const float temperature : {x, 1.0f, 0.0f}) {
      p.temperature = temperature;
      const SampledToken token = Sample(std::vector<float>{1, 2, 3}, p, std::vector<TokenId>{0, 1, 0}, 1, {});
      if (!token.error) {
        EXPECT_TRUE(token.token >= 0 && token.token < 3);
      }
    }
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const std::vector<double> probabilities{0.1, 0.4, 0.2, 0.3};
  const std::vector<float> logits = LogitsOf(probabilities);
  const Logprobs logprobs = ComputeLogprobs(logits, 2, 3);
  EXPECT_NEAR(logprobs.chosen, std::log(0.2), 1e-6);
  ASSERT_EQ(logprobs.top.size(), 3u);
  EXPECT_EQ(logprobs.top[0].token, 1);
  EXPECT_EQ(logprobs.top[1].token, 3);
  EXPECT_EQ(logprobs.top[2].token, 2);
  EXPECT_NEAR(logprobs.top[0].logprob, std::log(0.4), 1e-6);
  EXPECT_EQ(logprobs.top[2].logprob, logprobs.chosen);

  SamplingParams p = Greedy();
  p.logit_bias = {{0, 50.0f}};
  p.logprobs = 1;
  const SampledToken token = Sample(logits, p, std::vector<TokenId>{0, 1, 2}, 1, {});
  EXPECT_EQ(token.token, 0);
  EXPECT_EQ(token.position, 3);
  EXPECT_NEAR(token.logprob, std::log(0.1), 1e-6);
  ASSERT_EQ(token.top.size(), 1u);
  EXPECT_EQ(token.top[0].token, 1);
  EXPECT_TRUE(token.logits.empty());
}

TEST(Sampler, LogprobsOfZeroGiveTheChosenOneOnly) {
  SamplingParams p = Greedy();
  p.logprobs = 0;
  p.want_logits = true;
  const std::vector<float> logits{0, 0};
  const SampledToken token = Sample(logits, p, std::vector<TokenId>{0}, 1, {});
  EXPECT_NEAR(token.logprob, std::log(0.5), 1e-7);
  EXPECT_TRUE(token.top.empty());
  EXPECT_EQ(token.logits, logits);
}

TEST(Sampler, LogprobsAgreeWithTheDefinitionAtEveryRange) {
  std::mt19937 random(5);
  for (const float spread : {0.1f, 1.0f, 20.0f, 1000.0f}) {
    std::normal_distribution<float> normal(-3, spread);
    std::vector<float> logits(1003);
    for (float& x : logits) x = normal(random);
    long double sum = 0;
    const float best = *std::max_element(logits.begin(), logits.end());
    for (const float x : logits) sum += std::exp(static_cast<long double>(x) - best);
    for (const TokenId t : {0, 500, 1002}) {
      const double expected =
          static_cast<double>(static_cast<long double>(logits[static_cast<size_t>(t)]) - best - std::log(sum));
      EXPECT_FLOAT_EQ(ComputeLogprobs(logits, t, 0).chosen, static_cast<float>(expected));
    }
  }
}

}  // namespace
}  // namespace shoal
