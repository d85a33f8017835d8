// What: the pieces that attention.cc (which chooses the work) and its vector code share. Not for others.
#pragma once

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <cstddef>

#include "compute/kernels/attention.h"
#include "core/limits.h"

namespace shoal::kernels {

inline constexpr int kBlock = limits::kBlockTokens;
inline constexpr int kBlocksPerSpan = kSpanTokens / kBlock;
// A pair is one row and one query head. How many have their sums in registers together:
inline constexpr int kMaxTilePairs = 8;   // reading the cache as it is
inline constexpr int kWideTilePairs = 4;  // reading a span widened to f32
inline constexpr int kDirectPairs = 16;   // up to so many, widening first does not pay
inline constexpr int kUnitPairs = 128;    // pairs that share one widening of a span to f32
// Scores that a unit keeps, 1 MiB: longer contexts get units of fewer pairs, down to kMaxTilePairs.
inline constexpr size_t kUnitScores = size_t{1} << 18;

// Floats between the scores of one pair and the next: whole spans, and a little, so that the rows of a tile do not all
// fall into the same sets of the cache.
inline size_t ScoreStride(int positions) {
  return (static_cast<size_t>(positions) + kSpanTokens - 1) / kSpanTokens * kSpanTokens + kBlock;
}

// Some rows of one segment times some query heads of one KV head: what one thread computes at a time.
struct AttentionUnit {
  const Segment* segment = nullptr;
  int row = 0;  // within the segment
  int rows = 0;
  int kv_head = 0;  // of this rank
  int head = 0;     // first query head, of this rank
  int heads = 0;
  int pairs() const { return rows * heads; }
};

// What StoreBlock writes: rows k and v (of one KV head) go to positions first, first + 1, ... of one block.
struct BlockRows {
  int first = 0;
  int rows = 0;
  const float* k = nullptr;
  size_t k_stride = 0;
  const float* v = nullptr;
  size_t v_stride = 0;
};

// Positions [begin, end) seen by the row at `position`.
struct Visible {
  int begin = 0;
  int end = 0;
};
inline Visible VisibleFrom(int position, int window) {
  return {window > 0 ? std::max(0, position - window + 1) : 0, position + 1};
}

// Grows and never shrinks: a thread's working memory.
class Floats {
 public:
  float* Get(size_t n) {
    if (n > size_) {
      data_ = hwy::AllocateAligned<float>(n);
      size_ = data_ ? n : 0;
    }
    return data_.get();
  }

 private:
  hwy::AlignedFreeUniquePtr<float[]> data_;
  size_t size_ = 0;
};

struct AttentionScratch {
  Floats keys;    // [k_dim][kSpanTokens]
  Floats values;  // [kSpanTokens][padded v_dim]
  Floats scales;  // [ScalesOf(k_dim or v_dim)][kSpanTokens]
  Floats scores;  // [pairs of the unit][ScoreStride]
  Floats acc;     // [kUnitPairs][padded v_dim]
  Floats maxima;  // [kUnitPairs]
};

}  // namespace shoal::kernels
