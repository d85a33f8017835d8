// What: the packed linear layer. Weights of any GGUF type are re-packed at load time into panels for the CPU at hand and
// multiplied with rows of activations; one source (Highway) serves AVX2, AVX-512, NEON, chosen at run time.
//
// Exact: an output value is the same sequence of float operations whatever the number of activation rows, the thread
// count, the other output rows in the matrix, or how the K dimension is split over ranks (docs/design.md D4, core/slices.h).
//
// Shapes: weights [out_rows, columns], activations [n, columns] f32, result [outputs, n, out_rows] f32, where outputs =
// layout.subtrees.size(): one sum per maximal aligned subtree of the K slices that this rank holds (1 for a whole K).
// Threads: a PackedMatrix is immutable after Pack; every call takes (ith, nth) and does its part of the work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "core/slices.h"

namespace shoal::kernels {

// Weight types; the numbers are those of GGUF files.
enum class WeightType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
};

// How the K dimension of a matrix is cut. Columns are relative to this rank's part.
// Activations are quantised per block of 32 columns. Blocks are aligned to the matrix's own columns (absolute multiples of
// 32); a block that a slice boundary cuts appears in both slices, with zeros for the columns of the other.
struct KLayout {
  struct Slice {
    int64_t begin = 0;  // absolute columns [begin, end) of the matrix
    int64_t end = 0;
    int index = 0;    // which of the 16 slices it is
    int subtree = 0;  // index into `subtrees`
  };
  int64_t first_column = 0;  // absolute columns [first_column, last_column) are held here
  int64_t last_column = 0;
  std::vector<Slice> slices;      // the non-empty ones, in order
  std::vector<Subtree> subtrees;  // one output each
  int64_t columns() const { return last_column - first_column; }
  int outputs() const { return static_cast<int>(subtrees.size()); }

  // The whole K on this rank as one slice: column-parallel matrices (Q, K, V, gate, up, logits).
  static KLayout Whole(int64_t columns);
  // The part of `run` when `units` units of `unit_columns` columns are cut in 16; the last unit may be short (`columns` in all).
  static KLayout Sliced(SliceRun run, int64_t units, int64_t unit_columns, int64_t columns);
};

// What kind of activations a matrix wants. Prepared once per input and shared by all matrices of that kind and layout.
enum class ActivationKind { kF32, kI8 };
ActivationKind ActivationKindOf(WeightType type);

// Bytes that `n` prepared rows need (64-byte aligned start assumed).
size_t PreparedBytes(ActivationKind kind, const KLayout& layout, int64_t n);

// x: n rows of layout.columns() floats, `stride` floats apart. Rows are shared out over threads.
void Prepare(ActivationKind kind, const KLayout& layout, const float* x, int64_t stride, int64_t n, std::byte* prepared,
             int ith, int nth);

// Source rows as they lie in the file. Each row covers absolute columns [first_column, first_column + columns), a multiple of
// the type's block; it may be wider than what the layout wants (a K-quant super-block cut by a slice).
struct PackSource {
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t first_column = 0;
  int64_t columns = 0;
  size_t row_bytes = 0;  // distance between rows
  const std::byte* data = nullptr;
  // Instead of `data`: gives rows [first, first + count), one after the other. Called from several threads at once.
  std::function<Status(int64_t first, int64_t count, std::span<std::byte> out)> read = {};
};

class PackedMatrix {
 public:
  PackedMatrix();
  PackedMatrix(PackedMatrix&&) noexcept;
  PackedMatrix& operator=(PackedMatrix&&) noexcept;
  ~PackedMatrix();

  // Packs with `threads` threads, some rows at a time, so that a source that is read is never held whole. The layout is
  // copied. Fails: kOutOfMemory, kUnsupportedType, and what source.read fails with.
  static Result<PackedMatrix> Pack(const PackSource& source, const KLayout& layout, int threads);

  int64_t rows() const;
  ActivationKind kind() const;
  const KLayout& layout() const;
  size_t resident_bytes() const;
  // Row `row` of the weights, widened: the layout's columns, exactly as Dequantize gives them.
  void Row(int64_t row, float* out) const;

  // out[o][i][r] at out + o * output_stride + i * row_stride + r: for the n prepared rows, or, when `which` is given, for
  // prepared rows which[0..n) (MoE: the tokens of one expert). Output rows are shared out over threads.
  void Multiply(const std::byte* prepared, int64_t n, const int32_t* which, float* out, size_t row_stride,
                size_t output_stride, int ith, int nth) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The type's block: columns and bytes. Row bytes = columns / block_columns * block_bytes.
struct TypeInfo {
  std::string_view name;  // "q4_0"
  int64_t block_columns;
  size_t block_bytes;
};
// Null for a type this build cannot compute with.
const TypeInfo* FindType(WeightType type);

// Bytes of the packed form over those of the file's; 1 for a type without one.
double PackedRatio(WeightType type);

// Widens one row (or a run of blocks) to f32; the definition that every packed form must agree with.
void Dequantize(WeightType type, const std::byte* blocks, int64_t columns, float* out);

// The instruction set in use, e.g. "AVX3_DL": results are comparable bit for bit within one family.
std::string_view TargetName();
// Those that this processor has and this build has kernels for, the best first.
std::vector<std::string_view> TargetNames();
// Computes with this one instead of the best (upper or lower case): to compare them, and for clusters whose processors differ.
// Before any kernel has run. False: it is none of TargetNames().
bool UseTarget(std::string_view name);

}  // namespace shoal::kernels
