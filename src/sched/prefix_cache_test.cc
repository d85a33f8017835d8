#include "sched/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace shoal {
namespace {

constexpr int kBlock = limits::kBlockTokens;
using Tokens = std::vector<TokenId>;

Tokens Repeat(TokenId token, int count) { return Tokens(static_cast<size_t>(count), token); }
std::span<const TokenId> Part(const Tokens& tokens, int block) {
  return std::span(tokens).subspan(static_cast<size_t>(block * kBlock), kBlock);
}

TEST(PrefixCache, FindsTheLongestKnownPrefix) {
  PrefixCache cache(8);
  Tokens tokens = Repeat(1, 3 * kBlock);
  PrefixCache::Place place;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(cache.Add("", Part(tokens, i), i + 2, place));
  EXPECT_EQ(cache.Find("", tokens, 3).blocks, (std::vector<BlockId>{2, 3, 4}))
      << "the same tokens thrice are three places";
  EXPECT_EQ(cache.Find("", tokens, 2).blocks, (std::vector<BlockId>{2, 3}));
  EXPECT_TRUE(cache.Find("x", tokens, 3).blocks.empty());
  tokens[kBlock + 5] = 9;
  EXPECT_EQ(cache.Find("", tokens, 3).blocks, (std::vector<BlockId>{2}));
  tokens[0] = 9;
  EXPECT_TRUE(cache.Find("", tokens, 3).blocks.empty());
}

TEST(PrefixCache, WhatCameAfterAForgottenBlockIsNotFound) {
  PrefixCache cache(8);
  const Tokens tokens = Repeat(1, 3 * kBlock);
  PrefixCache::Place place;
  for (int i = 0; i < 3; ++i) cache.Add("", Part(tokens, i), i, place);
  cache.Forget(1);
  EXPECT_EQ(cache.Find("", tokens, 3).blocks, (std::vector<BlockId>{0}));
  // The same block with other tokens at the same place: what came after the old ones does not come after these.
  Tokens other = tokens;
  other[kBlock] = 7;
  place = cache.Find("", other, 1).end;
  EXPECT_TRUE(cache.Add("", Part(other, 1), 1, place));
  EXPECT_EQ(cache.Find("", other, 3).blocks, (std::vector<BlockId>{0, 1}));
}

TEST(PrefixCache, TheFirstOfTwoWithTheSameTokensIsTheOneToFind) {
  PrefixCache cache(8);
  const Tokens tokens = Repeat(1, 2 * kBlock);
  PrefixCache::Place first, second;
  EXPECT_TRUE(cache.Add("", Part(tokens, 0), 0, first));
  EXPECT_FALSE(cache.Add("", Part(tokens, 0), 1, second));
  EXPECT_TRUE(cache.Add("", Part(tokens, 1), 2, second)) << "behind the other's block";
  EXPECT_EQ(cache.Find("", tokens, 2).blocks, (std::vector<BlockId>{0, 2}));
  cache.Forget(0);  // the second does not hold it
  EXPECT_FALSE(cache.Add("", Part(tokens, 1), 3, first));
  EXPECT_TRUE(first.lost);
  EXPECT_TRUE(cache.Find("", tokens, 2).blocks.empty());
}

// Few tokens, tenants and blocks, so that everything meets everything: a match is always the very history of its block.
TEST(PrefixCache, NeverGivesABlockOfAnotherHistory) {
  std::mt19937_64 random(3);
  constexpr int kBlocks = 40;
  PrefixCache cache(kBlocks);
  std::map<BlockId, std::pair<std::string, Tokens>> held;  // block -> the whole history up to its end
  int found = 0;
  for (int round = 0; round < 5000; ++round) {
    const std::string tenant = random() % 4 == 0 ? "b" : "a";
    Tokens tokens;
    while (tokens.size() < 5 * kBlock) tokens.resize(tokens.size() + kBlock, static_cast<TokenId>(random() % 3));
    const auto match = cache.Find(tenant, tokens, 5);
    for (size_t i = 0; i < match.blocks.size(); ++i) {
      ++found;
      const auto& [whose, history] = held.at(match.blocks[i]);
      ASSERT_EQ(whose, tenant);
      ASSERT_EQ(history, Tokens(tokens.begin(), tokens.begin() + static_cast<int>(i + 1) * kBlock));
    }
    PrefixCache::Place place = match.end;
    for (int i = static_cast<int>(match.blocks.size()); i < 5; ++i) {
      const BlockId block = static_cast<BlockId>(random() % kBlocks);
      cache.Forget(block);
      held.erase(block);
      if (cache.Add(tenant, Part(tokens, i), block, place))
        held[block] = {tenant, Tokens(tokens.begin(), tokens.begin() + (i + 1) * kBlock)};
    }
    ASSERT_EQ(cache.size(), held.size());
  }
  EXPECT_GT(found, 1000);
}

}  // namespace
}  // namespace shoal
