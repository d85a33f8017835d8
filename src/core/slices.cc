#include "core/slices.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace shoal {

std::vector<Subtree> MaximalSubtrees(SliceRun run, int64_t units) {
  std::vector<Subtree> trees;
  for (int at = run.begin; at < run.end;) {
    int size = 1;
    while (at % (size * 2) == 0 && at + size * 2 <= run.end) size *= 2;
    if (UnitsOf({at, at + size}, units).count() > 0) trees.push_back({at, size});
    at += size;
  }
  return trees;
}

int PresentSlices(int64_t units) { return static_cast<int>(std::min<int64_t>(units, kSlices)); }

std::vector<SliceRun> ShareSlices(const std::vector<double>& weights) {
  const int ranks = static_cast<int>(weights.size());
  SHOAL_CHECK(ranks >= 1 && ranks <= kSlices);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<SliceRun> runs;
  double sum = 0;
  int begin = 0;
  for (int r = 0; r < ranks; ++r) {
    sum += weights[r];
    const int wanted = static_cast<int>(std::lround(sum / total * kSlices));
    // Leave at least one slice for this rank and for each that follows.
    const int end = r + 1 == ranks ? kSlices : std::clamp(wanted, begin + 1, kSlices - (ranks - 1 - r));
    runs.push_back({begin, end});
    begin = end;
  }
  return runs;
}

}  // namespace shoal
