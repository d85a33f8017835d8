// What: whether big steps are computed in parts, one while the sums of others travel between the ranks
// (StepPlan::overlap). Changes when things are computed, never what comes out.
// Owns: nothing. Threads: none.
// Reads next: sched/overlap.h, compute/parts.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace shoal {

enum class Overlap : uint8_t {
  kAuto,  // by measured time
  kOn,
  kOff,
};

inline constexpr std::array<std::string_view, 3> kOverlapNames = {"auto", "on", "off"};  // index = Overlap

constexpr std::string_view ToString(Overlap overlap) { return kOverlapNames[static_cast<size_t>(overlap)]; }

}  // namespace shoal
