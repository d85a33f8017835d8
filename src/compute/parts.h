// What: the rows of a step cut in parts, first rows first, so that one part can be computed while the sums of others travel. A pure
// function of the rows: every rank cuts at the same ones. A segment that reaches over a cut is cut too.
// With two parts the larger half of a layer (the FFN) hides the sums of the smaller one (attention), but not the other way round;
// with four, whatever travels in less time than the layer's computing is hidden. Each part reads all weights, so there are
// no more parts than have kLeastPart rows on average, but two at least.
// Owns: the parts' segments and logit rows; tokens and block tables stay the whole's.
// Threads: none. Pure.
// Limits: kMostParts parts.
// Fails: never; needs at least two rows.
// Reads next: compute/executor.h, compute/program.h.
#pragma once

#include <vector>

#include "compute/executor.h"

namespace shoal {

inline constexpr int kMostParts = 4;
inline constexpr int kLeastPart = 64;

struct RowPart {
  std::span<const TokenId> tokens;
  std::vector<kernels::Segment> segments;
  std::vector<int32_t> logit_rows;
  RowBatch batch() const { return {tokens, segments, logit_rows}; }
};

// Whether a step is one in parts.
inline bool InParts(const RowBatch& batch) { return batch.overlap && batch.tokens.size() > 1; }

// Rows of each part, two parts at least: whole groups of the kernels' but for the last, where there are as many.
std::vector<int> PartRows(int rows);

std::vector<RowPart> CutInParts(const RowBatch& whole);

}  // namespace shoal
