// What: attention of query rows over a paged KV cache of f16, q8_0 or f32. A (row, head) gets the scores of all positions that
// it sees, their exact maximum, the exponentials and their sum, weights that are normalised and then rounded to f16 (as
// the reference does: docs/decisions/0003-attention-weights-in-f16.md), and last the weighted sum of the values. Each of
// these is one fixed sequence of float operations over the positions from 0 on, so a result does not depend on batch,
// prompt chunking, split of the heads, threads, or on which pool blocks hold the sequence.
// f32: neither keys and values nor weights are rounded.
// q8_0: 32 values of a row (the last group may be shorter) have one scale d, the largest magnitude / 127 rounded to f16,
// and codes: value / d rounded to the nearest integer. code * d is exact in f32, so attention is the same operations on
// these values as on f16 ones. Both roundings see one row's values only and go to nearest even.
// Shapes: q [rows, heads, k_dim] f32, out [rows, heads, v_dim] f32; cache below. k_dim and v_dim are any sizes >= 1.
// Threads: (ith, nth) share the work. StoreKv of all threads must have finished before Attend starts (the caller's
// barrier); both leave no other shared state.
// Limits: cells that no visible position has written are never part of arithmetic that reaches a result: NaN bits in
// them do no harm. A NaN in q, or in a visible key or value, makes the results that see it NaN. q8_0: where all of 32
// values are below 3.8e-6 they become 0; where one is not finite or beyond 8.3e6, all 32 become NaN. A weight below
// 2^-25 counts as 0 (not in f32). Cost: linear in the positions that a row sees; blocks before a window are not read. Each thread
// keeps the scores of the pairs (row, head) it works on: the more of 1 MiB and 8 times the longest context in floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/ids.h"
#include "core/kv_type.h"
#include "core/limits.h"

namespace shoal::kernels {

// Positions that are read together.
inline constexpr int kSpanTokens = 64;

inline constexpr int kScaledValues = 32;  // values that share a scale in q8_0
constexpr size_t ScalesOf(int dim) { return (static_cast<size_t>(dim) + kScaledValues - 1) / kScaledValues; }

// Bytes of a cell: the keys (or values) of one KV head in one block. A multiple of 16.
constexpr size_t CellBytes(KvType type, int dim) {
  const auto values = static_cast<size_t>(dim);
  switch (type) {
    case KvType::kF16:
      return limits::kBlockTokens * 2 * values;
    case KvType::kQ8_0:
      return limits::kBlockTokens * (values + 2 * ScalesOf(dim));
    case KvType::kF32:
      return limits::kBlockTokens * 4 * values;
  }
  return 0;
}

// One layer's K and V pools, each [pool blocks][kv_heads] cells; block b of a sequence covers positions
// [b * kBlockTokens, ...). Keys lie transposed inside a cell, so that 16 positions are 16 vector lanes and a dot product
// needs no sum across lanes:
//   f16:  f16 bits [k_dim][kBlockTokens] and [kBlockTokens][v_dim]
//   f32:  the same of floats
//   q8_0: int8 codes in the same places, then the scales: f16 bits [ScalesOf(dim)][kBlockTokens]
struct KvLayer {
  std::byte* k = nullptr;  // aligned for what the cells hold
  std::byte* v = nullptr;
  int kv_heads = 0;  // KV heads held by this rank
  int k_dim = 0;
  int v_dim = 0;
  KvType type = KvType::kF16;
};

// Rows of one sequence in a step: row r (0-based in the segment) is at position first_position + r.
struct Segment {
  int first_row = 0;
  int rows = 0;
  int first_position = 0;
  std::span<const BlockId> blocks;  // the sequence's block table; covers position first_position + rows - 1
};

struct AttentionShape {
  int heads = 0;       // query heads held by this rank
  int first_head = 0;  // absolute index of the first; KV head of head h = h / group - first_kv_head
  int first_kv_head = 0;
  int group = 1;      // query heads per KV head in the whole model
  float scale = 1;    // multiplies q . k
  float softcap = 0;  // 0 = none; else s = cap * tanh(s / cap)
  int window = 0;     // 0 = all; else only positions > p - window are seen
};

// Writes k [rows, kv_heads, k_dim] and v [rows, kv_heads, v_dim] of the step into the cache, rounded to its type
// (nearest even). A stride of 0 means dense rows.
void StoreKv(const KvLayer& layer, std::span<const Segment> segments, const float* k, size_t k_stride, const float* v,
             size_t v_stride, int ith, int nth);

// A stride of 0 means dense rows.
void Attend(const KvLayer& layer, const AttentionShape& shape, std::span<const Segment> segments, const float* q,
            size_t q_stride, float* out, size_t out_stride, int ith, int nth);

}  // namespace shoal::kernels
