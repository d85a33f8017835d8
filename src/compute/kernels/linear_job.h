// What: what the public calls of linear.h hand to the code of one instruction set: plain descriptions of prepared rows and of
// the part of a product to compute. Inside this folder only.
// Owns: nothing.
// Threads: each thread has its own job.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/kernels/linear.h"

namespace shoal::kernels {

// 32 activation columns of one row, as symmetric int8: value = scale * q. The sums serve weight codes with an offset: they
// are the start value of the integer dot product, or (scaled_sum) what a weight minimum is multiplied with.
struct Piece {
  int8_t q[32];
  float scale;         // largest magnitude / 127
  int32_t minus8;      // -8 * sum of q
  int32_t minus128;    // -128 * sum of q
  float scaled_sum;    // scale * sum of q
  int32_t minus32[2];  // -32 * sum of q, first and second 16 columns
};
static_assert(sizeof(Piece) == 56);

// Prepared rows lie in groups of `width` = min(n, 16 or 12) rows: [group][unit][row of the group], where a unit is a Piece or one
// float column. The first 64 bytes of the buffer say how many rows there are.
inline constexpr int64_t kInt8GroupRows = 16;
inline constexpr int64_t kFloatGroupRows = 12;
constexpr int64_t GroupRows(ActivationKind kind) {
  return kind == ActivationKind::kF32 ? kFloatGroupRows : kInt8GroupRows;
}
inline constexpr size_t kPreparedHeader = 64;
struct PreparedHeader {
  int64_t rows;
};
struct RowsShape {
  size_t width = 1;        // rows of a group
  size_t unit_bytes = 0;   // sizeof(Piece) or sizeof(float)
  size_t unit_stride = 0;  // from one unit of a row to the next
  size_t group_bytes = 0;
  size_t Offset(int64_t row) const {
    const auto r = static_cast<size_t>(row);
    return kPreparedHeader + r / width * group_bytes + r % width * unit_bytes;
  }
};

// One slice of K in the order of summing.
struct SliceStep {
  int64_t begin = 0;  // absolute columns
  int64_t end = 0;
  int64_t first_block = 0;  // absolute 32-column blocks that it touches
  int64_t end_block = 0;
  int64_t first_unit = 0;  // its first piece (int8) or column (f32) in a prepared row
  int merges = 0;          // how many waiting sums to its left are added when it is done
  int output = -1;         // the output that is complete then
};

inline constexpr int kMostWaiting = 4;  // sums that wait in the binary counter over 16 slices

// A rectangle of outputs: panels [panel_begin, panel_end) for n rows.
struct MultiplyJob {
  WeightType type = WeightType::kF32;
  const SliceStep* steps = nullptr;
  int step_count = 0;
  int64_t first_column = 0;
  const std::byte* panels = nullptr;
  size_t panel_bytes = 0;
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
  int64_t out_rows = 0;
  const std::byte* prepared = nullptr;
  RowsShape shape;
  int64_t first_row = 0;  // prepared row of the first output row, when `which` is null
  int64_t n = 0;
  const int32_t* which = nullptr;  // prepared row of each output row
  int64_t RowOf(int64_t i) const { return which == nullptr ? first_row + i : which[i]; }
  float* out = nullptr;
  size_t row_stride = 0;
  size_t output_stride = 0;
};
// One entry for each family; they run on the best target of the CPU.
namespace linear {
void MultiplyBlocks(const MultiplyJob& job);  // quantised, scales in each block
void MultiplySupers(const MultiplyJob& job);  // quantised, scales in super-blocks
void MultiplyFloat(const MultiplyJob& job);
}  // namespace linear

// Quantises 32 floats (zeros where a slice does not reach).
struct QuantiseJob {
  const float* x = nullptr;  // `blocks` blocks of 32, one after another
  int64_t blocks = 0;
  std::byte* out = nullptr;  // the Piece of the first block
  size_t stride = 0;         // to the next one
};
namespace linear {
void Quantise(const QuantiseJob& job);
const char* NameOfTarget();
int64_t UsableTargets();  // Highway's bits; a lower one is a better target
}  // namespace linear

}  // namespace shoal::kernels
