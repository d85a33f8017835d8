#include "sched/prefix_cache.h"

#include <algorithm>

#include "base/check.h"

namespace shoal {
namespace {

constexpr size_t kBlock = limits::kBlockTokens;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint64_t HashOf(uint64_t before, std::string_view tenant, std::span<const TokenId> tokens) {
  // The tenant in every block: who does not know another's cannot make blocks that fall into the same place.
  uint64_t hash = Mix(Mix(before + 0x9e3779b97f4a7c15ull) ^ std::hash<std::string_view>{}(tenant));
  for (const TokenId token : tokens) hash = Mix(hash + static_cast<uint32_t>(token) + 0x9e3779b97f4a7c15ull);
  return hash;
}

}  // namespace

BlockId PrefixCache::Look(uint64_t before, std::string_view tenant, std::span<const TokenId> tokens, uint64_t hash,
                          bool* taken) const {
  const auto found = index_.find(hash);
  if (taken != nullptr) *taken = found != index_.end();
  if (found == index_.end()) return -1;
  const Entry& entry = entries_[static_cast<size_t>(found->second)];
  const bool same =
      entry.before == before && std::ranges::equal(entry.tokens, tokens) && (before != 0 || entry.tenant == tenant);
  return same ? found->second : -1;
}

PrefixCache::Match PrefixCache::Find(std::string_view tenant, std::span<const TokenId> tokens, int most) const {
  Match match;
  for (int i = 0; i < most; ++i) {
    const auto part = tokens.subspan(static_cast<size_t>(i) * kBlock, kBlock);
    const BlockId block = Look(match.end.entry, tenant, part, HashOf(match.end.entry, tenant, part), nullptr);
    if (block < 0) break;
    match.blocks.push_back(block);
    match.end = {.entry = entries_[static_cast<size_t>(block)].number, .block = block};
  }
  return match;
}

bool PrefixCache::Add(std::string_view tenant, std::span<const TokenId> tokens, BlockId block, Place& place) {
  SHOAL_CHECK(tokens.size() == kBlock);
  // The entry before may be another sequence's block, given away since.
  if (place.block >= 0 && entries_[static_cast<size_t>(place.block)].number != place.entry) place.lost = true;
  if (place.lost) return false;
  const uint64_t hash = HashOf(place.entry, tenant, tokens);
  bool taken = false;
  const BlockId known = Look(place.entry, tenant, tokens, hash, &taken);
  if (known >= 0) {
    place = {.entry = entries_[static_cast<size_t>(known)].number, .block = known};
    return false;
  }
  place.lost = taken || Knows(block);  // two histories of one hash: the first one stays
  if (place.lost) return false;
  Entry& entry = entries_[static_cast<size_t>(block)];
  entry.number = ++last_number_;
  entry.before = place.entry;
  entry.hash = hash;
  std::ranges::copy(tokens, entry.tokens.begin());
  if (place.entry == 0) entry.tenant = tenant;
  index_.emplace(hash, block);
  place = {.entry = entry.number, .block = block};
  return true;
}

void PrefixCache::Forget(BlockId block) {
  Entry& entry = entries_[static_cast<size_t>(block)];
  if (entry.number == 0) return;
  index_.erase(entry.hash);
  entry = {};
}

}  // namespace shoal
