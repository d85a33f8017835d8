#include "compute/halves.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"

namespace shoal {
namespace {

constexpr int kGroupRows = 16;  // that the linear kernels work on together

}  // namespace

int FirstHalf(int rows) {
  const int half = CeilDiv(rows, 2), groups = CeilDiv(half, kGroupRows) * kGroupRows;
  return groups < rows ? groups : half;
}

std::array<Half, 2> CutInHalves(const RowBatch& whole) {
  const auto rows = static_cast<int>(whole.tokens.size());
  SHOAL_CHECK(rows >= 2);
  const int cut = FirstHalf(rows);
  std::array<Half, 2> halves;
  for (int h = 0; h < 2; ++h) {
    Half& half = halves[static_cast<size_t>(h)];
    const int begin = h == 0 ? 0 : cut, end = h == 0 ? cut : rows;
    half.tokens = whole.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    for (const auto& segment : whole.segments) {
      const int first = std::max(begin, segment.first_row), last = std::min(end, segment.first_row + segment.rows);
      if (first >= last) continue;
      half.segments.push_back(
          {first - begin, last - first, segment.first_position + first - segment.first_row, segment.blocks});
    }
    for (const int32_t row : whole.logit_rows)
      if (row >= begin && row < end) half.logit_rows.push_back(row - begin);
  }
  return halves;
}

}  // namespace shoal
