// What: how keys and values lie in the KV cache. Part of the ShardPlan, so that every rank agrees.
// kQ8_0: 32 values of a row share one f16 scale and have 8 bits each; about half the bytes of kF16, a little less exact.
// kF32: nothing of attention is rounded to fewer bits; twice the bytes of kF16. For comparing numerics.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace shoal {

enum class KvType : uint8_t { kF16, kQ8_0, kF32 };  // numbers are the wire's

inline constexpr std::array<std::string_view, 3> kKvTypeNames = {"f16", "q8_0", "f32"};  // index = KvType

constexpr std::string_view ToString(KvType type) { return kKvTypeNames[static_cast<size_t>(type)]; }

}  // namespace shoal
