// What: whether big steps are computed in parts, one while the sums of others travel between the ranks
// (StepPlan::overlap). Changes when things are computed, never what comes out.
// Owns: nothing. Threads: none. Fails: a name that is none of these is no value.
// Reads next: sched/overlap.h, compute/parts.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace shoal {

enum class Overlap : uint8_t {
  kAuto,  // by measured time
  kOn,
  kOff,
};

inline constexpr std::array<std::string_view, 3> kOverlapNames = {"auto", "on", "off"};  // index = Overlap

constexpr std::string_view ToString(Overlap overlap) { return kOverlapNames[static_cast<size_t>(overlap)]; }

constexpr std::optional<Overlap> OverlapNamed(std::string_view name) {
  for (size_t i = 0; i < kOverlapNames.size(); ++i)
    if (kOverlapNames[i] == name) return static_cast<Overlap>(i);
  return std::nullopt;
}

}  // namespace shoal
