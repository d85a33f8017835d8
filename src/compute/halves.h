// What: the rows of a step cut in two, the first ones and the last ones, so that one half can be computed while the other's sums
// travel. A pure function of the rows: every rank cuts at the same one. A segment that reaches over the cut is cut too.
// Owns: the halves' segments and logit rows; tokens and block tables stay the whole's.
// Fails: never; needs at least two rows.
#pragma once

#include <array>
#include <vector>

#include "compute/executor.h"

namespace shoal {

struct Half {
  std::span<const TokenId> tokens;
  std::vector<kernels::Segment> segments;
  std::vector<int32_t> logit_rows;
  RowBatch batch() const { return {tokens, segments, logit_rows}; }
};

// Rows of the first half: whole groups of the kernels', where there are as many.
int FirstHalf(int rows);

std::array<Half, 2> CutInHalves(const RowBatch& whole);

}  // namespace shoal
