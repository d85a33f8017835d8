// What: two small hash tables with open addressing that the tokenizers look into for every character: text -> token
// id, and 64-bit key -> value.
// Owns: their slots; TokenIndex keeps no text, it points at the vocabulary's.
// Threads: filled once, then only read.
// Limits: 2^31 entries.
// Fails: never.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/ids.h"

namespace shoal {

// A random number of this process: mixed into both tables' hashes so that no file can be made to collide in them.
uint64_t HashSeed();

class TokenIndex {
 public:
  // Texts by id; empty ones are left out. Of two ids with the same text the lower one is found.
  void Build(std::span<const std::string_view> texts);
  TokenId Find(std::string_view text) const;  // -1 = none

 private:
  struct Slot {
    uint32_t hash = 0;
    TokenId id = -1;
  };
  std::span<const std::string_view> texts_;
  std::vector<Slot> slots_;
  uint64_t seed_ = 0;
};

template <class Value>
class KeyTable {
 public:
  void Reserve(size_t count) {
    slots_.assign(std::bit_ceil(count * 2 + 8), Slot{});
    mask_ = slots_.size() - 1;
  }
  // Keeps the value that is there already. Reserve() must have been told of at least as many keys.
  bool Insert(uint64_t key, Value value) {
    Slot& slot = slots_[Locate(key)];
    if (slot.used) return false;
    slot = {key, value, true};
    return true;
  }
  const Value* Find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[Locate(key)];
    return slot.used ? &slot.value : nullptr;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    Value value{};
    bool used = false;
  };
  size_t Locate(uint64_t key) const {
    // The finaliser of SplitMix64: every bit of the key reaches every bit of the place.
    uint64_t x = (key ^ seed_) + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    size_t at = static_cast<size_t>(x ^ (x >> 31)) & mask_;
    while (slots_[at].used && slots_[at].key != key) at = (at + 1) & mask_;
    return at;
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  uint64_t seed_ = HashSeed();
};

}  // namespace shoal
