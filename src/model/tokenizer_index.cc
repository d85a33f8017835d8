#include "model/tokenizer_index.h"

#include <xxhash.h>

#include <random>

namespace shoal {

uint64_t HashSeed() {
  static const uint64_t seed = [] {
    std::random_device device;
    return (static_cast<uint64_t>(device()) << 32) | device();
  }();
  return seed;
}

void TokenIndex::Build(std::span<const std::string_view> texts) {
  texts_ = texts;
  seed_ = HashSeed();
  slots_.assign(std::bit_ceil(texts.size() * 2 + 8), Slot{});
  const size_t mask = slots_.size() - 1;
  for (size_t id = 0; id < texts.size(); ++id) {
    if (texts[id].empty()) continue;
    const uint64_t hash = XXH3_64bits_withSeed(texts[id].data(), texts[id].size(), seed_);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    size_t at = static_cast<size_t>(hash) & mask;
    bool known = false;
    while (slots_[at].id >= 0 && !known) {
      known = slots_[at].hash == tag && texts[static_cast<size_t>(slots_[at].id)] == texts[id];
      at = (at + 1) & mask;
    }
    if (!known) slots_[at] = {tag, static_cast<TokenId>(id)};
  }
}

TokenId TokenIndex::Find(std::string_view text) const {
  if (slots_.empty()) return -1;
  const uint64_t hash = XXH3_64bits_withSeed(text.data(), text.size(), seed_);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  const size_t mask = slots_.size() - 1;
  for (size_t at = static_cast<size_t>(hash) & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
    if (slots_[at].hash == tag && texts_[static_cast<size_t>(slots_[at].id)] == text) return slots_[at].id;
  }
  return -1;
}

}  // namespace shoal
