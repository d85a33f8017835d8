// What: panels, the packed form of a weight matrix. 16 output rows lie side by side, so that a SIMD lane is an output row.
//
//   quantised   per 32 columns: codes, interleaved by groups of four columns ([group 0..7][row 0..15][4 codes]; nibble v holds
//               groups v (low) and v + 4 (high)), then planes of higher code bits, then the rows' scales and mins;
//               at each 256-column super-block a header with the rows' f16 scales (and mins).
//   float       per column: 16 values.
//
// Panels do not depend on the slices of K: a block that a slice boundary cuts is there once.
// Owns: the bytes.
// Threads: immutable after PackPanels.
// Limits: sizes are checked; rows of a last, short panel are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "compute/kernels/linear.h"
#include "compute/kernels/types.h"

namespace shoal::kernels {

inline constexpr int kPanelRows = 16;

// Where things lie in a block record of a quantised panel. Record = codes, plane, scales, mins.
struct RecordShape {
  size_t plane = 0;   // offset of the plane of higher bits
  size_t scales = 0;  // offset of the scales: f16[16], or int8[halves][16]
  size_t mins = 0;    // offset of the mins, likewise
  size_t bytes = 0;
  size_t header = 0;  // bytes of a super-block header: f16 scale[16], then f16 min[16]
};

constexpr RecordShape ShapeOf(const Format& f) {
  RecordShape s;
  s.plane = f.bits == CodeBits::k8 ? 512 : 256;
  s.scales = s.plane + (f.bits == CodeBits::k5 ? 64 : f.bits == CodeBits::k6 ? 128 : 0);
  const size_t scale_bytes = f.super ? (f.halves ? 32 : 16) : 32;
  s.mins = s.scales + scale_bytes;
  s.bytes = s.mins + (f.min != 0 ? scale_bytes : 0);
  s.header = f.super ? (f.min != 0 ? 64 : 32) : 0;
  return s;
}

// Bytes from the start of a panel to the record of absolute block `block`, when the panel starts at `first`.
constexpr size_t RecordOffset(const RecordShape& shape, int64_t first, int64_t block) {
  const int64_t headers = block / kSuperBlocks - first / kSuperBlocks + 1;
  return static_cast<size_t>(block - first) * shape.bytes + static_cast<size_t>(headers) * shape.header;
}

// Panels and the memory they lie in.
class Panels {
 public:
  Panels() = default;
  Panels(Panels&& other) noexcept;
  Panels& operator=(Panels&& other) noexcept;
  ~Panels();

  // Columns [first, last) of the source's absolute columns; for quantised types whole 32-blocks around them are packed.
  static Result<Panels> Pack(const PackSource& source, int64_t first, int64_t last, int threads);

  // Columns [first, last) of one row, widened; the rest as they were packed.
  void Row(WeightType type, int64_t first, int64_t last, int64_t row, float* out) const;

  const std::byte* data() const { return data_; }
  size_t panel_bytes() const { return panel_bytes_; }
  size_t bytes() const { return bytes_; }
  int64_t count() const { return count_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  size_t panel_bytes_ = 0;
  int64_t count_ = 0;
};

}  // namespace shoal::kernels
