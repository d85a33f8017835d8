#include "compute/kernels/linear.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "compute/kernels/linear_job.h"
#include "compute/kernels/pack.h"
#include "hwy/targets.h"

namespace shoal::kernels {
namespace {

// Prepared rows that are worked on together should stay in a core's own cache while all panels pass by.
constexpr size_t kChunkBytes = size_t{1} << 20;

int64_t PiecesOf(const KLayout::Slice& slice) {
  return slice.end > slice.begin ? CeilDiv(slice.end, kBlock) - slice.begin / kBlock : 0;
}

int64_t CountUnits(ActivationKind kind, const KLayout& layout) {
  if (kind == ActivationKind::kF32) return layout.columns();
  int64_t pieces = 0;
  for (const KLayout::Slice& slice : layout.slices) pieces += PiecesOf(slice);
  return pieces;
}

RowsShape ShapeOfRows(ActivationKind kind, int64_t units, int64_t n) {
  RowsShape shape;
  shape.width = static_cast<size_t>(std::clamp<int64_t>(n, 1, GroupRows(kind)));
  shape.unit_bytes = kind == ActivationKind::kF32 ? sizeof(float) : sizeof(Piece);
  shape.unit_stride = shape.width * shape.unit_bytes;
  shape.group_bytes = shape.unit_stride * static_cast<size_t>(units);
  return shape;
}

// Where part `i` of `total` things begins when n share them.
int64_t Share(int64_t total, int i, int n) { return total * i / n; }

// Appends the slices of `tree` in order; each knows how many sums to its left it completes. False if none is present.
bool OrderSums(const KLayout& layout, Subtree tree, std::vector<SliceStep>& steps) {
  if (tree.size == 1) {
    const size_t next = steps.size();
    if (next >= layout.slices.size() || layout.slices[next].index != tree.begin) return false;
    const KLayout::Slice& slice = layout.slices[next];
    SliceStep step;
    step.begin = slice.begin;
    step.end = slice.end;
    step.first_block = slice.begin / kBlock;
    step.end_block = step.first_block + PiecesOf(slice);
    steps.push_back(step);
    return true;
  }
  const int half = tree.size / 2;
  const bool left = OrderSums(layout, {tree.begin, half}, steps);
  const bool right = OrderSums(layout, {tree.begin + half, half}, steps);
  if (left && right) ++steps.back().merges;
  return left || right;
}

std::vector<SliceStep> StepsOf(ActivationKind kind, const KLayout& layout) {
  std::vector<SliceStep> steps;
  for (int o = 0; o < layout.outputs(); ++o) {
    SHOAL_CHECK(OrderSums(layout, layout.subtrees[static_cast<size_t>(o)], steps));
    steps.back().output = o;
  }
  SHOAL_CHECK(steps.size() == layout.slices.size());
  int64_t unit = 0;
  for (SliceStep& step : steps) {
    step.first_unit = unit;
    unit += kind == ActivationKind::kF32 ? step.end - step.begin : step.end_block - step.first_block;
  }
  return steps;
}

// Pieces [first, last) of one row: the whole blocks of a slice straight from x, a block that the slice cuts by way of zeros.
void QuantiseRow(const KLayout& layout, const float* x, int64_t first, int64_t last, std::byte* row, size_t stride) {
  int64_t unit = 0;
  for (const KLayout::Slice& slice : layout.slices) {
    const int64_t pieces = PiecesOf(slice);
    const int64_t block0 = slice.begin / kBlock - unit;  // block of piece p is p + block0
    int64_t p = std::max(first, unit);
    const int64_t end = std::min(last, unit + pieces);
    unit += pieces;
    while (p < end) {
      const int64_t column = (p + block0) * kBlock;
      QuantiseJob job{nullptr, 1, row + static_cast<size_t>(p) * stride, stride};
      float cut[kBlock];
      if (column >= slice.begin && column + kBlock <= slice.end) {
        job.x = x + (column - layout.first_column);
        job.blocks = std::min(end - p, (slice.end - column) / kBlock);
      } else {
        for (int64_t i = 0; i < kBlock; ++i) {
          const int64_t c = column + i;
          cut[i] = c >= slice.begin && c < slice.end ? x[c - layout.first_column] : 0.0f;
        }
        job.x = cut;
      }
      linear::Quantise(job);
      p += job.blocks;
    }
  }
}

}  // namespace

KLayout KLayout::Whole(int64_t columns) {
  SHOAL_CHECK(columns >= 0);
  KLayout layout;
  layout.last_column = columns;
  layout.slices = {{0, columns, 0, 0}};
  layout.subtrees = {{0, kSlices}};
  return layout;
}

KLayout KLayout::Sliced(SliceRun run, int64_t units, int64_t unit_columns, int64_t columns) {
  SHOAL_CHECK(0 <= run.begin && run.begin <= run.end && run.end <= kSlices && units >= 0 && unit_columns > 0);
  const auto column = [&](int slice) { return std::min(SliceFirstUnit(slice, units) * unit_columns, columns); };
  KLayout layout;
  layout.first_column = column(run.begin);
  layout.last_column = column(run.end);
  layout.subtrees = MaximalSubtrees(run, units);
  for (int s = run.begin; s < run.end; ++s) {
    if (UnitsOf({s, s + 1}, units).count() == 0) continue;
    int tree = 0;
    while (s >= layout.subtrees[static_cast<size_t>(tree)].end()) ++tree;
    layout.slices.push_back({column(s), column(s + 1), s, tree});
  }
  return layout;
}

size_t PreparedBytes(ActivationKind kind, const KLayout& layout, int64_t n) {
  const RowsShape shape = ShapeOfRows(kind, CountUnits(kind, layout), n);
  const size_t groups = CeilDiv(static_cast<size_t>(std::max<int64_t>(n, 0)), shape.width);
  return (kPreparedHeader + groups * shape.group_bytes + 63) / 64 * 64;
}

void Prepare(ActivationKind kind, const KLayout& layout, const float* x, int64_t stride, int64_t n, std::byte* prepared,
             int ith, int nth) {
  const int64_t units = CountUnits(kind, layout);
  const RowsShape shape = ShapeOfRows(kind, units, n);
  if (ith == 0) {
    const PreparedHeader header{n};
    std::memcpy(prepared, &header, sizeof header);
  }
  if (kind == ActivationKind::kF32) {
    const int64_t begin = Share(units, ith, nth);
    const int64_t end = Share(units, ith + 1, nth);
    const auto width = static_cast<int64_t>(shape.width);
    for (int64_t r0 = 0; r0 < n; r0 += width) {
      auto* to = reinterpret_cast<float*>(prepared + shape.Offset(r0)) + begin * width;
      const int64_t rows = std::min(width, n - r0);
      for (int64_t c = begin; c < end; ++c, to += width) {
        for (int64_t r = 0; r < rows; ++r) to[r] = x[(r0 + r) * stride + c];
      }
    }
    return;
  }
  // All pieces of all rows, in equal parts: a single row is worth sharing too.
  const int64_t begin = Share(n * units, ith, nth);
  const int64_t end = Share(n * units, ith + 1, nth);
  for (int64_t at = begin; at < end;) {
    const int64_t r = at / units;
    const int64_t last = std::min(end - r * units, units);
    QuantiseRow(layout, x + r * stride, at - r * units, last, prepared + shape.Offset(r), shape.unit_stride);
    at = r * units + last;
  }
}

struct PackedMatrix::Impl {
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  KLayout layout;
  ActivationKind kind = ActivationKind::kF32;
  int64_t units = 0;
  std::vector<SliceStep> steps;
  Panels panels;
};

PackedMatrix::PackedMatrix() : impl_(std::make_unique<Impl>()) {}
PackedMatrix::PackedMatrix(PackedMatrix&&) noexcept = default;
PackedMatrix& PackedMatrix::operator=(PackedMatrix&&) noexcept = default;
PackedMatrix::~PackedMatrix() = default;

Result<PackedMatrix> PackedMatrix::Pack(const PackSource& source, const KLayout& layout, int threads) {
  PackedMatrix matrix;
  Impl& impl = *matrix.impl_;
  SHOAL_ASSIGN(impl.panels, Panels::Pack(source, layout.first_column, layout.last_column, threads));
  impl.type = source.type;
  impl.rows = source.rows;
  impl.layout = layout;
  impl.kind = ActivationKindOf(source.type);
  impl.units = CountUnits(impl.kind, layout);
  impl.steps = StepsOf(impl.kind, layout);
  return matrix;
}

int64_t PackedMatrix::rows() const { return impl_->rows; }
ActivationKind PackedMatrix::kind() const { return impl_->kind; }
const KLayout& PackedMatrix::layout() const { return impl_->layout; }
size_t PackedMatrix::resident_bytes() const { return impl_->panels.bytes(); }

void PackedMatrix::Row(int64_t row, float* out) const {
  SHOAL_CHECK(row >= 0 && row < impl_->rows);
  impl_->panels.Row(impl_->type, impl_->layout.first_column, impl_->layout.last_column, row, out);
}

void PackedMatrix::Multiply(const std::byte* prepared, int64_t n, const int32_t* which, float* out, size_t row_stride,
                            size_t output_stride, int ith, int nth) const {
  const Impl& m = *impl_;
  if (n <= 0 || m.steps.empty()) return;
  PreparedHeader header;
  std::memcpy(&header, prepared, sizeof header);
  SHOAL_CHECK(which != nullptr || n <= header.rows);
  MultiplyJob job;
  job.type = m.type;
  job.steps = m.steps.data();
  job.step_count = static_cast<int>(m.steps.size());
  job.first_column = m.layout.first_column;
  job.panels = m.panels.data();
  job.panel_bytes = m.panels.panel_bytes();
  job.panel_begin = Share(m.panels.count(), ith, nth);
  job.panel_end = Share(m.panels.count(), ith + 1, nth);
  job.out_rows = m.rows;
  job.shape = ShapeOfRows(m.kind, m.units, header.rows);
  job.row_stride = row_stride;
  job.output_stride = output_stride;
  if (job.panel_begin == job.panel_end) return;
  const size_t row_bytes = std::max<size_t>(1, static_cast<size_t>(m.units) * job.shape.unit_bytes);
  const int64_t group = GroupRows(m.kind);
  const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / row_bytes) / group) * group;
  for (int64_t at = 0; at < n; at += chunk) {
    job.prepared = prepared;
    job.first_row = at;
    job.n = std::min(chunk, n - at);
    job.which = which == nullptr ? nullptr : which + at;
    job.out = out + static_cast<size_t>(at) * row_stride;
    if (m.kind == ActivationKind::kF32) {
      linear::MultiplyFloat(job);
    } else if (FormatOf(m.type).super) {
      linear::MultiplySupers(job);
    } else {
      linear::MultiplyBlocks(job);
    }
  }
}

std::string_view TargetName() { return linear::NameOfTarget(); }

std::vector<std::string_view> TargetNames() {
  std::vector<std::string_view> names;
  for (int64_t rest = linear::UsableTargets(); rest != 0; rest &= rest - 1)
    names.emplace_back(hwy::TargetName(rest & -rest));
  return names;
}

bool UseTarget(std::string_view name) {
  const auto same = [](char a, char b) { return std::toupper(static_cast<unsigned char>(a)) == b; };
  for (int64_t rest = linear::UsableTargets(); rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    if (!std::ranges::equal(name, std::string_view(hwy::TargetName(target)), same)) continue;
    hwy::DisableTargets(target - 1);
    return true;
  }
  return false;
}

}  // namespace shoal::kernels
