#include "compute/parts.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"

namespace shoal {
namespace {

constexpr int kGroupRows = 16;  // that the linear kernels work on together

}  // namespace

std::vector<int> PartRows(int rows) {
  SHOAL_CHECK(rows >= 2);
  std::vector<int> parts;
  for (int count = std::clamp(rows / kLeastPart, 2, kMostParts); count > 1; --count) {
    const int equal = CeilDiv(rows, count), groups = CeilDiv(equal, kGroupRows) * kGroupRows;
    parts.push_back(groups <= rows - (count - 1) ? groups : equal);
    rows -= parts.back();
  }
  parts.push_back(rows);
  return parts;
}

std::vector<RowPart> CutInParts(const RowBatch& whole) {
  std::vector<RowPart> parts;
  int begin = 0;
  for (const int rows : PartRows(static_cast<int>(whole.tokens.size()))) {
    const int end = begin + rows;
    RowPart& part = parts.emplace_back();
    part.tokens = whole.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
    for (const auto& segment : whole.segments) {
      const int first = std::max(begin, segment.first_row), last = std::min(end, segment.first_row + segment.rows);
      if (first >= last) continue;
      part.segments.push_back(
          {first - begin, last - first, segment.first_position + first - segment.first_row, segment.blocks});
    }
    for (const int32_t row : whole.logit_rows)
      if (row >= begin && row < end) part.logit_rows.push_back(row - begin);
    begin = end;
  }
  return parts;
}

}  // namespace shoal
