// The packed linear layer against a plain scalar reading of its definition (equal bits, on every instruction set of this CPU),
// against ggml's own widening (equal bits) and against a product in double precision (within what rounding the activations
// to int8 explains).
#include "compute/kernels/linear.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "base/check.h"
#include "compute/kernels/linear_targets.h"
#include "compute/kernels/types.h"
#include "core/reasons.h"
#include "hwy/targets.h"

namespace shoal::kernels {
namespace {

constexpr WeightType kAllTypes[] = {WeightType::kF32,  WeightType::kF16,    WeightType::kBF16,  WeightType::kQ4_0,
                                    WeightType::kQ4_1, WeightType::kQ5_0,   WeightType::kQ5_1,  WeightType::kQ8_0,
                                    WeightType::kQ2_K, WeightType::kQ3_K,   WeightType::kQ4_K,  WeightType::kQ5_K,
                                    WeightType::kQ6_K, WeightType::kIQ4_NL, WeightType::kIQ4_XS};

// A generator of 32-bit numbers (splitmix64) for the standard distributions.
struct Random {
  using result_type = uint32_t;
  static constexpr uint32_t min() { return 0; }
  static constexpr uint32_t max() { return UINT32_MAX; }
  uint32_t operator()() {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 16);
  }
  uint64_t state;
};

// Offsets of the f16 fields in a block: random bytes there would be NaN or huge.
std::vector<size_t> HalfFields(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kIQ4_XS:
      return {0};
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      return {0, 2};
    case WeightType::kQ2_K:
      return {80, 82};
    case WeightType::kQ3_K:
      return {108};
    case WeightType::kQ6_K:
      return {208};
    default:
      return {};
  }
}

// f16 bits of either sign, about 2^-14 .. 2^-4, now and then subnormal or zero.
uint16_t RandomHalf(Random& random) {
  const uint32_t r = random();
  const uint32_t exponent = r % 16 == 0 ? 0 : 1 + (r >> 4) % 10;
  return static_cast<uint16_t>(((r >> 16) & 0x83ff) | (exponent << 10));
}

float RandomFloat(Random& random) { return std::normal_distribution<float>()(random); }

struct Source {
  std::vector<std::byte> bytes;
  PackSource view;
};

Source RandomSource(WeightType type, int64_t rows, int64_t first_column, int64_t columns, Random& random) {
  const TypeInfo& info = *FindType(type);
  Source source;
  const auto blocks = static_cast<size_t>(columns / info.block_columns);
  source.bytes.resize(static_cast<size_t>(rows) * blocks * info.block_bytes);
  for (std::byte& b : source.bytes) b = static_cast<std::byte>(random());
  for (size_t b = 0; b < static_cast<size_t>(rows) * blocks; ++b) {
    std::byte* block = source.bytes.data() + b * info.block_bytes;
    const auto put16 = [&](size_t at) {
      const uint16_t half = RandomHalf(random);
      std::memcpy(block + at, &half, 2);
    };
    for (size_t at : HalfFields(type)) put16(at);
    if (type == WeightType::kF16) put16(0);
    const float value = RandomFloat(random);
    if (type == WeightType::kF32) std::memcpy(block, &value, 4);
    if (type == WeightType::kBF16) std::memcpy(block, reinterpret_cast<const char*>(&value) + 2, 2);
  }
  source.view = {type, rows, first_column, columns, blocks * info.block_bytes, source.bytes.data()};
  return source;
}

std::vector<float> RandomRows(int64_t n, int64_t columns, Random& random) {
  std::vector<float> x(static_cast<size_t>(n * columns));
  for (float& v : x) v = RandomFloat(random);
  return x;
}

// ---- the definition, written plainly -------------------------------------------------------------------------------

struct Quantised {
  int q[32];
  float scale;
  int Sum(int from, int to) const {
    int sum = 0;
    for (int i = from; i < to; ++i) sum += q[i];
    return sum;
  }
};

// Block `block` of a row (x at absolute column `first`), zeros outside [begin, end).
Quantised QuantiseBlock(const float* x, int64_t first, int64_t begin, int64_t end, int64_t block) {
  float v[32];
  float largest = 0;
  for (int i = 0; i < 32; ++i) {
    const int64_t c = block * 32 + i;
    v[i] = c >= begin && c < end ? x[c - first] : 0.0f;
    largest = std::max(largest, std::fabs(v[i]));
  }
  Quantised out{};
  if (largest <= 1e-30f) return out;
  out.scale = largest / 127.0f;
  const float inverse = 127.0f / largest;
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int>(std::nearbyint(v[i] * inverse));
  return out;
}

float AddBlock(float sum, const Format& f, const Codes& c, const Quantised& a) {
  const float d = HalfToFloat(c.scale);
  const float m = HalfToFloat(c.min);
  const int halves = f.halves ? 2 : 1;
  const int width = 32 / halves;
  float min[2];
  for (int h = 0; h < halves; ++h) {
    const float scale = f.super ? d * static_cast<float>(f.sign ? static_cast<int8_t>(c.scales[h]) : c.scales[h]) : d;
    min[h] = f.super ? m * static_cast<float>(c.mins[h]) : m;
    if (f.min < 0) min[h] = -min[h];
    int dot = 0;
    for (int i = h * width; i < (h + 1) * width; ++i) {
      dot += ((f.table ? kNonLinear[c.q[i]] : c.q[i]) - f.offset) * a.q[i];
    }
    sum = std::fma(static_cast<float>(dot), scale * a.scale, sum);
  }
  for (int h = 0; h < halves && f.min != 0; ++h) {
    sum = std::fma(min[h], a.scale * static_cast<float>(a.Sum(h * width, (h + 1) * width)), sum);
  }
  return sum;
}

float SliceSum(const PackSource& w, int64_t row, int64_t begin, int64_t end, const float* x, int64_t first) {
  const TypeInfo& info = *FindType(w.type);
  const std::byte* from = w.data + static_cast<size_t>(row) * w.row_bytes;
  if (ActivationKindOf(w.type) == ActivationKind::kF32) {
    std::vector<float> weights(static_cast<size_t>(w.columns));
    Dequantize(w.type, from, w.columns, weights.data());
    float sum[2] = {0, 0};
    for (int64_t c = begin; c < end; ++c) {
      float& to = sum[(c - begin) % 2];
      to = std::fma(weights[static_cast<size_t>(c - w.first_column)], x[c - first], to);
    }
    return sum[0] + sum[1];
  }
  float sum = 0;
  const int64_t parts = info.block_columns / 32;
  for (int64_t b = begin / 32; b * 32 < end; ++b) {
    const int64_t at = b - w.first_column / 32;
    Codes codes;
    ReadCodes(w.type, from + static_cast<size_t>(at / parts) * info.block_bytes, static_cast<int>(at % parts), codes);
    sum = AddBlock(sum, FormatOf(w.type), codes, QuantiseBlock(x, first, begin, end, b));
  }
  return sum;
}

using Slices = std::map<int, float>;

bool TreeSum(const Slices& slices, int begin, int size, float& sum) {
  if (size == 1) {
    const auto found = slices.find(begin);
    if (found == slices.end()) return false;
    sum = found->second;
    return true;
  }
  float left, right;
  const bool has_left = TreeSum(slices, begin, size / 2, left);
  const bool has_right = TreeSum(slices, begin + size / 2, size / 2, right);
  sum = has_left && has_right ? left + right : has_left ? left : right;
  return has_left || has_right;
}

// [outputs][n][rows]
std::vector<float> Reference(const PackSource& w, const KLayout& layout, const std::vector<float>& x, int64_t n) {
  std::vector<float> out;
  for (const Subtree& tree : layout.subtrees) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t r = 0; r < w.rows; ++r) {
        Slices sums;
        for (const KLayout::Slice& s : layout.slices) {
          if (s.index < tree.begin || s.index >= tree.end()) continue;
          sums[s.index] = SliceSum(w, r, s.begin, s.end, x.data() + i * layout.columns(), layout.first_column);
        }
        float sum = 0;
        EXPECT_TRUE(TreeSum(sums, tree.begin, tree.size, sum));
        out.push_back(sum);
      }
    }
  }
  return out;
}

// ---- the kernels ---------------------------------------------------------------------------------------------------

struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<std::byte*>(std::aligned_alloc(64, bytes))) {
    std::memset(data, 0xff, bytes);
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  std::byte* data;
};

std::vector<float> Product(const PackedMatrix& m, const std::vector<float>& x, int64_t n, int nth = 1) {
  const KLayout& layout = m.layout();
  Aligned prepared(PreparedBytes(m.kind(), layout, n));
  std::vector<float> out(static_cast<size_t>(layout.outputs() * n * m.rows()), -1234.5f);
  const auto rows = static_cast<size_t>(m.rows());
  for (int ith = nth - 1; ith >= 0; --ith)
    Prepare(m.kind(), layout, x.data(), layout.columns(), n, prepared.data, ith, nth);
  for (int ith = 0; ith < nth; ++ith) {
    m.Multiply(prepared.data, n, nullptr, out.data(), rows, rows * static_cast<size_t>(n), ith, nth);
  }
  return out;
}

::testing::AssertionResult SameBits(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return ::testing::AssertionFailure() << got.size() << " values, not " << want.size();
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], 4) != 0) {
      return ::testing::AssertionFailure()
             << "value " << i << " of " << got.size() << " is " << got[i] << ", not " << want[i];
    }
  }
  return ::testing::AssertionSuccess();
}

PackedMatrix MustPack(const PackSource& source, const KLayout& layout, int threads = 1) {
  auto packed = PackedMatrix::Pack(source, layout, threads);
  EXPECT_TRUE(packed.has_value());
  return std::move(*packed);
}

int64_t WholeBlocks(WeightType type, int64_t columns) {
  const int64_t block = FindType(type)->block_columns;
  return (columns + block - 1) / block * block;
}

class Linear : public ::testing::TestWithParam<WeightType> {
 protected:
  ~Linear() override { hwy::SetSupportedTargetsForTest(0); }
  bool IsFloat() const { return ActivationKindOf(GetParam()) == ActivationKind::kF32; }
  Random random_{static_cast<uint64_t>(GetParam()) + 1};
};

TEST_P(Linear, WidensLikeGgml) {
  const TypeInfo& info = *FindType(GetParam());
  const ggml_type_traits* traits = ggml_get_type_traits(static_cast<ggml_type>(GetParam()));
  std::string name = traits->type_name;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  EXPECT_EQ(info.name, name);
  EXPECT_EQ(info.block_columns, traits->blck_size);
  EXPECT_EQ(info.block_bytes, traits->type_size);
  const Source source = RandomSource(GetParam(), 8, 0, 2048, random_);
  for (int64_t r = 0; r < 8; ++r) {
    const std::byte* row = source.view.data + static_cast<size_t>(r) * source.view.row_bytes;
    std::vector<float> got(2048), want(2048);
    Dequantize(GetParam(), row, 2048, got.data());
    if (traits->to_float != nullptr) {
      traits->to_float(row, want.data(), 2048);
    } else {
      std::memcpy(want.data(), row, 2048 * sizeof(float));  // f32
    }
    ASSERT_TRUE(SameBits(got, want));
  }
}

TEST_P(Linear, GivesItsRowsBack) {
  const int64_t columns = 768;
  const Source source = RandomSource(GetParam(), 37, 0, columns, random_);
  for (const KLayout& layout : {KLayout::Whole(columns), KLayout::Sliced({3, 11}, 12, 64, columns)}) {
    const PackedMatrix matrix = MustPack(source.view, layout, 2);
    for (int64_t r = 0; r < 37; ++r) {
      std::vector<float> row(static_cast<size_t>(columns)), got(static_cast<size_t>(layout.columns()));
      Dequantize(GetParam(), source.view.data + static_cast<size_t>(r) * source.view.row_bytes, columns, row.data());
      matrix.Row(r, got.data());
      ASSERT_TRUE(SameBits(got, {row.begin() + layout.first_column, row.begin() + layout.last_column})) << r;
    }
  }
}

// A source that is read: in pieces, by all threads, and its failure is that of Pack.
TEST_P(Linear, PacksWhatItReadsPieceByPiece) {
  const int64_t columns = 256, rows = 5003;
  const Source source = RandomSource(GetParam(), rows, 0, columns, random_);
  const KLayout layout = KLayout::Whole(columns);
  const std::vector<float> x = RandomRows(1, columns, random_);
  const std::vector<float> want = Product(MustPack(source.view, layout), x, 1);
  PackSource read = source.view;
  read.data = nullptr;
  std::vector<std::atomic<int>> seen(static_cast<size_t>(rows));
  read.read = [&](int64_t first, int64_t count, std::span<std::byte> out) -> Status {
    SHOAL_CHECK(out.size() == static_cast<size_t>(count) * read.row_bytes);
    for (int64_t r = first; r < first + count; ++r) ++seen[static_cast<size_t>(r)];
    std::memcpy(out.data(), source.view.data + static_cast<size_t>(first) * read.row_bytes, out.size());
    return {};
  };
  EXPECT_TRUE(SameBits(Product(MustPack(read, layout, 3), x, 1), want));
  for (const auto& count : seen) ASSERT_EQ(count, 1);
  read.read = [&](int64_t first, int64_t, std::span<std::byte>) -> Status {
    if (first == 0) return {};
    return Fail(Code::kUnavailable, reasons::kPeerLost, "gone");
  };
  if (static_cast<size_t>(rows) * read.row_bytes < (size_t{2} << 20)) return;  // one piece
  const auto failed = PackedMatrix::Pack(read, layout, 2);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().reason, reasons::kPeerLost);
}

// Shapes: a short panel, several panels, tiny ones; columns that are no multiple of 32 where the type allows it.
TEST_P(Linear, EqualsTheDefinitionForEveryBatchAndThreadCount) {
  struct Shape {
    int64_t rows, columns;
  };
  for (const Shape shape :
       {Shape{1, 256}, Shape{16, 512}, Shape{37, 768}, Shape{105, 64}, Shape{20, IsFloat() ? 172 : 96}}) {
    const int64_t columns = IsFloat() ? shape.columns : WholeBlocks(GetParam(), shape.columns);
    const Source source = RandomSource(GetParam(), shape.rows, 0, columns, random_);
    const KLayout layout = KLayout::Whole(columns);
    const std::vector<float> x = RandomRows(64, columns, random_);
    const std::vector<float> want = Reference(source.view, layout, x, 64);
    const PackedMatrix matrix = MustPack(source.view, layout, 2);
    for (const int64_t n : {1, 2, 3, 4, 7, 8, 17, 64}) {
      for (const int nth : {1, 2, 3}) {
        const std::vector<float> first(want.begin(), want.begin() + n * shape.rows);
        ASSERT_TRUE(SameBits(Product(matrix, x, n, nth), first))
            << shape.rows << "x" << columns << ", " << n << " rows, " << nth << " threads";
      }
    }
  }
}

TEST_P(Linear, EqualsTheDefinitionOnEveryInstructionSet) {
  const int64_t columns = 768;
  const Source source = RandomSource(GetParam(), 37, 0, columns, random_);
  for (const KLayout& layout : {KLayout::Whole(columns), KLayout::Sliced({0, 16}, columns / 32, 32, columns)}) {
    const std::vector<float> x = RandomRows(29, columns, random_);
    const std::vector<float> want = Reference(source.view, layout, x, 29);
    const PackedMatrix matrix = MustPack(source.view, layout);
    const int64_t best = hwy::SupportedTargets();
    for (int64_t targets = best & HWY_TARGETS; targets != 0; targets &= targets - 1) {
      const int64_t target = targets & -targets;
      hwy::SetSupportedTargetsForTest(target);
      EXPECT_EQ(TargetName(), hwy::TargetName(target));
      EXPECT_TRUE(SameBits(Product(matrix, x, 29), want)) << hwy::TargetName(target);
      hwy::SetSupportedTargetsForTest(0);
    }
  }
}

// The extremes that could saturate: every code and every activation at its end.
TEST_P(Linear, DoesNotSaturate) {
  if (IsFloat()) return;  // no integers in it
  const int64_t columns = 256;
  Source source = RandomSource(GetParam(), 16, 0, columns, random_);
  const TypeInfo& info = *FindType(GetParam());
  for (const int fill : {0x00, 0xff, 0x80, 0x7f}) {
    std::fill(source.bytes.begin(), source.bytes.end(), static_cast<std::byte>(fill));
    for (size_t b = 0; b < source.bytes.size(); b += info.block_bytes) {
      for (size_t at : HalfFields(GetParam())) {
        const uint16_t half = 0x2c01;
        std::memcpy(source.bytes.data() + b + at, &half, 2);
      }
    }
    for (const float value : {1.0f, -1.0f}) {
      const std::vector<float> x(static_cast<size_t>(columns * 9), value);
      const KLayout layout = KLayout::Whole(columns);
      const std::vector<float> want = Reference(source.view, layout, x, 9);
      const PackedMatrix matrix = MustPack(source.view, layout);
      const int64_t best = hwy::SupportedTargets();
      for (int64_t targets = best & HWY_TARGETS; targets != 0; targets &= targets - 1) {
        hwy::SetSupportedTargetsForTest(targets & -targets);
        EXPECT_TRUE(SameBits(Product(matrix, x, 9), want)) << TargetName();
        hwy::SetSupportedTargetsForTest(0);
      }
    }
  }
}

// Splits of K over ranks: each part equals the definition, and the parts together equal the whole.
TEST_P(Linear, EverySplitAddsUpToTheWhole) {
  struct Cut {
    int64_t units, unit_columns;
  };
  for (const Cut cut : {Cut{24, 32}, Cut{9, 80}, Cut{32, 8}, Cut{6, 64}, Cut{48, 16}, Cut{3, 256}}) {
    const int64_t columns = cut.units * cut.unit_columns;
    const int64_t stored = IsFloat() ? columns : WholeBlocks(GetParam(), columns);
    const Source source = RandomSource(GetParam(), 21, 0, stored, random_);
    const int64_t n = 5;
    const std::vector<float> x = RandomRows(n, columns, random_);
    const KLayout whole = KLayout::Sliced({0, 16}, cut.units, cut.unit_columns, columns);
    ASSERT_EQ(whole.outputs(), 1);
    const std::vector<float> want = Product(MustPack(source.view, whole), x, n);
    ASSERT_TRUE(SameBits(want, Reference(source.view, whole, x, n)));
    for (int round = 0; round < 4; ++round) {
      std::vector<double> weights(1 + random_() % 5);
      for (double& w : weights) w = 1 + random_() % 7;
      std::vector<std::pair<Subtree, std::vector<float>>> parts;
      for (const SliceRun run : ShareSlices(weights)) {
        const KLayout layout = KLayout::Sliced(run, cut.units, cut.unit_columns, columns);
        if (layout.outputs() == 0) continue;
        std::vector<float> part;
        for (int64_t i = 0; i < n; ++i) {
          const auto row = x.begin() + i * columns;
          part.insert(part.end(), row + layout.first_column, row + layout.last_column);
        }
        // What a rank holds of the file: the blocks around its columns.
        const TypeInfo& info = *FindType(GetParam());
        const int64_t begin = layout.first_column / info.block_columns * info.block_columns;
        const int64_t end = WholeBlocks(GetParam(), layout.last_column);
        PackSource view = source.view;
        view.data += static_cast<size_t>(begin / info.block_columns) * info.block_bytes;
        view.first_column = begin;
        view.columns = end - begin;
        const std::vector<float> out = Product(MustPack(view, layout), part, n, 1 + static_cast<int>(random_() % 3));
        ASSERT_TRUE(SameBits(out, Reference(view, layout, part, n)));
        for (int o = 0; o < layout.outputs(); ++o) {
          const auto at = out.begin() + o * n * 21;
          parts.emplace_back(layout.subtrees[static_cast<size_t>(o)], std::vector<float>(at, at + n * 21));
        }
      }
      const auto sum = CombineSubtrees(std::move(parts), [](std::vector<float>& dst, const std::vector<float>& src) {
        for (size_t i = 0; i < dst.size(); ++i) dst[i] += src[i];
      });
      ASSERT_TRUE(SameBits(sum, want)) << cut.units << " units of " << cut.unit_columns;
    }
  }
}

TEST_P(Linear, GathersRows) {
  const int64_t columns = 512;
  const Source source = RandomSource(GetParam(), 40, 0, columns, random_);
  const PackedMatrix matrix = MustPack(source.view, KLayout::Whole(columns));
  for (const int64_t n : {1, 5, 16, 21, 33}) {
    const std::vector<float> x = RandomRows(n, columns, random_);
    const std::vector<float> all = Product(matrix, x, n);
    std::vector<int32_t> which;
    for (int i = 0; i < 19; ++i) which.push_back(static_cast<int32_t>(random_() % static_cast<uint32_t>(n)));
    Aligned prepared(PreparedBytes(matrix.kind(), matrix.layout(), n));
    Prepare(matrix.kind(), matrix.layout(), x.data(), columns, n, prepared.data, 0, 1);
    std::vector<float> out(19 * 50, 7.0f);
    matrix.Multiply(prepared.data, 19, which.data(), out.data(), 50, 0, 0, 1);
    for (size_t i = 0; i < which.size(); ++i) {
      const auto row = all.begin() + which[i] * 40;
      ASSERT_TRUE(std::equal(row, row + 40, out.begin() + static_cast<int64_t>(i) * 50));
      ASSERT_EQ(out[i * 50 + 40], 7.0f) << "wrote past the last row";
    }
  }
}

// More rows than are worked on at a time.
TEST_P(Linear, ManyRows) {
  const int64_t columns = 256;
  const int64_t n = 3000;
  const Source source = RandomSource(GetParam(), 3, 0, columns, random_);
  const PackedMatrix matrix = MustPack(source.view, KLayout::Whole(columns));
  const std::vector<float> x = RandomRows(n, columns, random_);
  const std::vector<float> all = Product(matrix, x, n);
  for (const int64_t i : {0, 1311, 2047, 2999}) {
    const std::vector<float> row(x.begin() + i * columns, x.begin() + (i + 1) * columns);
    EXPECT_TRUE(SameBits(Product(matrix, row, 1), {all.begin() + i * 3, all.begin() + (i + 1) * 3}));
  }
}

TEST_P(Linear, NearTheProductInDoublePrecision) {
  const int64_t columns = 1024;
  const Source source = RandomSource(GetParam(), 32, 0, columns, random_);
  const int64_t n = 8;
  const std::vector<float> x = RandomRows(n, columns, random_);
  const std::vector<float> got = Product(MustPack(source.view, KLayout::Whole(columns)), x, n);
  std::vector<float> w(static_cast<size_t>(columns));
  for (int64_t r = 0; r < 32; ++r) {
    Dequantize(GetParam(), source.view.data + static_cast<size_t>(r) * source.view.row_bytes, columns, w.data());
    double norm = 0;
    double magnitude = 0;
    for (const float v : w) norm += static_cast<double>(v) * v;
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      double largest = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const double v = x[static_cast<size_t>(i * columns + c)];
        sum += v * w[static_cast<size_t>(c)];
        largest = std::max(largest, std::fabs(v));
        magnitude += std::fabs(v * w[static_cast<size_t>(c)]);
      }
      // Rounding errors are uniform within half a step: standard deviation step / sqrt(12) each; 6 sigma.
      const double step = IsFloat() ? 0 : largest / 127;
      const double tolerance = 6 * step / std::sqrt(12.0) * std::sqrt(norm) + 1e-6 * magnitude;
      EXPECT_NEAR(got[static_cast<size_t>(i * 32 + r)], sum, tolerance);
    }
  }
}

TEST_P(Linear, PackedIsNotMuchLargerThanTheSource) {
  const int64_t columns = 5632;
  const Source source = RandomSource(GetParam(), 32, 0, columns, random_);
  const KLayout layout = KLayout::Sliced({0, 16}, columns / 32, 32, columns);
  const PackedMatrix matrix = MustPack(source.view, layout);
  const double ratio = static_cast<double>(matrix.resident_bytes()) / static_cast<double>(source.bytes.size());
  const bool wider = GetParam() == WeightType::kQ2_K || GetParam() == WeightType::kQ3_K;  // 2 and 3 bits lie in nibbles
  EXPECT_LE(ratio, wider ? 2.1 : 1.05);
  EXPECT_NEAR(PackedRatio(GetParam()), ratio, 0.005);
  RecordProperty("ratio", std::to_string(ratio));
}

TEST_P(Linear, EmptyMatricesAndShares) {
  const int64_t columns = 256;
  const Source none = RandomSource(GetParam(), 0, 0, columns, random_);
  const std::vector<float> x = RandomRows(3, columns, random_);
  EXPECT_TRUE(Product(MustPack(none.view, KLayout::Whole(columns), 4), x, 3, 2).empty());
  // Slice 0 of one unit is empty: that rank has nothing to send.
  const Source some = RandomSource(GetParam(), 5, 0, columns, random_);
  const KLayout nothing = KLayout::Sliced({0, 1}, 1, columns, columns);
  EXPECT_EQ(nothing.outputs(), 0);
  EXPECT_EQ(nothing.columns(), 0);
  EXPECT_TRUE(Product(MustPack(some.view, nothing), {}, 3).empty());
  const PackedMatrix matrix = MustPack(some.view, KLayout::Whole(columns));
  EXPECT_TRUE(Product(matrix, {}, 0).empty());
  EXPECT_TRUE(SameBits(Product(matrix, x, 3, 7), Product(matrix, x, 3, 1))) << "more threads than panels";
}

TEST_P(Linear, ZeroAndTinyAndBrokenActivations) {
  const int64_t columns = 256;
  const Source source = RandomSource(GetParam(), 16, 0, columns, random_);
  const PackedMatrix matrix = MustPack(source.view, KLayout::Whole(columns));
  std::vector<float> x(static_cast<size_t>(columns * 4));
  for (int64_t c = 0; c < columns; ++c) x[static_cast<size_t>(columns + c)] = 1e-39f;
  x[static_cast<size_t>(2 * columns + 40)] = NAN;
  x[static_cast<size_t>(3 * columns + 200)] = INFINITY;
  const std::vector<float> out = Product(matrix, x, 4);
  for (size_t r = 0; r < 16; ++r) {
    EXPECT_EQ(out[r], 0.0f);
    EXPECT_LE(std::fabs(out[16 + r]), 1e-30f);
    EXPECT_TRUE(std::isnan(out[32 + r]));
    EXPECT_FALSE(std::isfinite(out[48 + r]));
  }
}

std::string NameOf(const ::testing::TestParamInfo<WeightType>& info) { return std::string(FindType(info.param)->name); }
INSTANTIATE_TEST_SUITE_P(Types, Linear, ::testing::ValuesIn(kAllTypes), NameOf);

TEST(LinearTypes, UnknownTypesAreRefused) {
  EXPECT_EQ(FindType(static_cast<WeightType>(16)), nullptr);
  PackSource source;
  source.type = static_cast<WeightType>(99);
  const auto packed = PackedMatrix::Pack(source, KLayout::Whole(0), 1);
  ASSERT_FALSE(packed.has_value());
  EXPECT_EQ(packed.error().reason.name(), "unsupported_type");
}

// Threads at work together, so that the thread sanitizer sees them.
TEST(LinearThreads, SharePanels) {
  Random random{7};
  const Source source = RandomSource(WeightType::kQ4_0, 200, 0, 512, random);
  const PackedMatrix matrix = MustPack(source.view, KLayout::Whole(512), 3);
  const std::vector<float> x = RandomRows(9, 512, random);
  Aligned prepared(PreparedBytes(matrix.kind(), matrix.layout(), 9));
  std::vector<float> out(200 * 9);
  const auto together = [](auto&& work) {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&work, i] { work(i); });
  };
  together([&](int i) { Prepare(matrix.kind(), matrix.layout(), x.data(), 512, 9, prepared.data, i, 3); });
  together([&](int i) { matrix.Multiply(prepared.data, 9, nullptr, out.data(), 200, 0, i, 3); });
  EXPECT_TRUE(SameBits(out, Product(matrix, x, 9)));
}

}  // namespace
}  // namespace shoal::kernels
