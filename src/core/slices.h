// What: virtual slices, the arithmetic that makes results independent of the split (docs/design.md D4). The K dimension of a
// row-parallel product (attention output, FFN down) is cut into 16 slices; slice sums are added in a fixed binary tree.
// A rank holds a contiguous run of slices, so what it contributes is the sums of the maximal aligned subtrees of its run.
//
//     slice   0 1 2 3 4 5 6 7 8 9 ...         rank 0 holds [0,5), rank 1 [5,16):
//             \_/ \_/ \_/ \_/                  rank 0 sends {[0,4), [4,5)},
//              \___/   \___/                   rank 1 sends {[5,6), [6,8), [8,16)}
//
// A slice without units (fewer than 16 units) is absent from the tree: its parent equals its sibling, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

namespace shoal {

inline constexpr int kSlices = 16;

// Slices [begin, end) of 0..16.
struct SliceRun {
  int begin = 0;
  int end = kSlices;
  int size() const { return end - begin; }
  friend bool operator==(const SliceRun&, const SliceRun&) = default;
};

// First unit of `slice` when `units` units (query heads, or 32-value blocks) are cut in 16. slice may be 16 (= units).
constexpr int64_t SliceFirstUnit(int slice, int64_t units) { return slice * units / kSlices; }

// Units [first, last) of a run of slices.
struct UnitRange {
  int64_t first = 0;
  int64_t last = 0;
  int64_t count() const { return last - first; }
  friend bool operator==(const UnitRange&, const UnitRange&) = default;
};
constexpr UnitRange UnitsOf(SliceRun run, int64_t units) {
  return {SliceFirstUnit(run.begin, units), SliceFirstUnit(run.end, units)};
}

// An aligned subtree: slices [begin, begin + size), size a power of two that divides begin.
struct Subtree {
  int begin = 0;
  int size = 0;
  int end() const { return begin + size; }
  friend bool operator==(const Subtree&, const Subtree&) = default;
};

// The maximal aligned subtrees of `run`, in slice order, those without units left out. At most 7; empty for an empty share.
std::vector<Subtree> MaximalSubtrees(SliceRun run, int64_t units);

// How many slices have at least one unit: the most ranks that can each hold some.
int PresentSlices(int64_t units);

// Ends of contiguous slice runs for ranks with the given weights (> 0), each as near to its share as sixteenths allow and
// none empty while ranks <= 16. Equal weights give runs that differ by at most one slice. runs.size() == weights.size().
std::vector<SliceRun> ShareSlices(const std::vector<double>& weights);

// One step of the fixed tree on arrival: combines subtree sums into the root. `Add(dst, src)` adds src (right) into dst (left).
// `parts` holds distinct subtrees that cover every present slice, in any order; V is movable.
template <class V, class AddFn>
V CombineSubtrees(std::vector<std::pair<Subtree, V>> parts, AddFn&& add);

}  // namespace shoal

#include "core/slices_inl.h"
