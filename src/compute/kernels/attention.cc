// The vector code is compiled once per instruction set (Highway). Its results are the same bits for every
// vector width with fused multiply-add: a score is one chain of FMAs over the dimensions in its own lane, an
// output value one chain over the positions in its own lane, the denominator 16 partial sums (position mod
// 16) that meet in a fixed tree at the end.
// AVX3 already has all that is used here; scalable vectors cannot be kept in arrays.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#include "compute/kernels/attention.h"

#include <cmath>
#include <limits>

#include "base/check.h"
#include "compute/kernels/attention_inl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/kernels/attention.cc"
// clang-format off: the order matters
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kBlock>;
using DH = hn::Rebind<hwy::float16_t, DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using DI = hn::Rebind<int32_t, DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using V = hn::Vec<DF>;
constexpr size_t kLanes = hn::MaxLanes(DF());
static_assert(kBlock % kLanes == 0);

// Vectors a tile holds per row: 4 x 4 sums fill half of 32 registers, 4 x 2 half of 16.
#if HWY_MAX_BYTES >= 64 || HWY_ARCH_ARM_A64
constexpr size_t kTileVectors = 4;
#else
constexpr size_t kTileVectors = 2;
#endif

HWY_INLINE V FromHalf(const uint16_t* from) { return hn::PromoteTo(DF(), hn::BitCast(DH(), hn::LoadU(DU16(), from))); }

// e^x for x <= 0; exactly 0 below -86 (where it would leave the normal range), exactly 1 at 0; NaN stays NaN.
HWY_INLINE V ExpNegative(V x) {
  const DF d;
  const DI di;
  const V magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const V t = hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), magic);
  const V n = hn::Sub(t, magic);
  // x - n ln 2, ln 2 in two parts, so that the rest keeps all its bits.
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693145752f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), r);
  r = hn::Mul(r, hn::Set(d, 1.44269504088896341f));
  // 2^r on [-1/2, 1/2], interpolated at the Chebyshev points; the error is below 2e-8.
  V p = hn::Set(d, 1.546144485e-04f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.340042800e-03f));
  p = hn::MulAdd(p, r, hn::Set(d, 9.618056938e-03f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550327152e-02f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402265072e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931471825e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, t), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -86.0f)), hn::Mul(p, hn::BitCast(d, power)));
}

// The cells of a span; of its blocks only those that are read.
struct Cells {
  const std::byte* block[kBlocksPerSpan] = {};
  template <class T>
  const T* As(size_t b) const {
    return reinterpret_cast<const T*>(block[b]);
  }
};

// The right-hand matrices of products. RunAt(row, column) stands at a vector of a row and goes down the rows with
// Next(), up to RunEnd(row).
// A span widened to f32.
struct WideRows {
  const float* data;
  size_t stride;
  struct Run {
    const float* at;
    size_t stride;
    HWY_INLINE V Next() {
      const V x = hn::Load(DF(), at);
      at += stride;
      return x;
    }
  };
  HWY_INLINE Run RunAt(int row, size_t column) const {
    return {data + static_cast<size_t>(row) * stride + column, stride};
  }
  HWY_INLINE int RunEnd(int) const { return std::numeric_limits<int>::max(); }
};

HWY_INLINE V Widened(const uint16_t* from) { return FromHalf(from); }
HWY_INLINE V Widened(const float* from) { return hn::LoadU(DF(), from); }
// T: f16 bits, or float.
template <class T>
struct PlainRun {
  const T* at;
  size_t stride;
  HWY_INLINE V Next() {
    const V x = Widened(at);
    at += stride;
    return x;
  }
};
// Keys as they lie in the cache: a row is a dimension, a column a position of the span.
template <class T>
struct PlainKeys {
  Cells cells;
  HWY_INLINE PlainRun<T> RunAt(int row, size_t column) const {
    return {cells.As<T>(column / kBlock) + static_cast<size_t>(row) * kBlock + column % kBlock, kBlock};
  }
  HWY_INLINE int RunEnd(int) const { return std::numeric_limits<int>::max(); }
};
// Values as they lie in the cache: a row is a position of the span, a column a dimension.
template <class T>
struct PlainValues {
  Cells cells;
  size_t v_dim;
  HWY_INLINE const T* At(int row, size_t column) const {
    return cells.As<T>(static_cast<size_t>(row / kBlock)) + static_cast<size_t>(row % kBlock) * v_dim + column;
  }
  HWY_INLINE PlainRun<T> RunAt(int row, size_t column) const { return {At(row, column), v_dim}; }
  HWY_INLINE V Rest(int row, size_t column) const {  // less than a vector, filled up with 0
    HWY_ALIGN T rest[kLanes] = {};
    std::copy(At(row, column), At(row, v_dim), rest);
    return Widened(rest);
  }
  HWY_INLINE int RunEnd(int row) const { return (row / kBlock + 1) * kBlock; }
};

constexpr uint16_t kNoScale = 0x7e00;  // a half that is NaN
HWY_INLINE V FromCodes(const int8_t* from) { return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DI8(), from))); }
// The same two of q8_0; scales [..][kSpanTokens] of the span, widened. A product with a scale is exact.
struct CodedKeys {
  Cells cells;
  const float* scales;
  struct Run {
    const int8_t* at;
    V scale;
    HWY_INLINE V Next() {
      const V x = hn::Mul(FromCodes(at), scale);
      at += kBlock;
      return x;
    }
  };
  HWY_INLINE Run RunAt(int row, size_t column) const {
    return {cells.As<int8_t>(column / kBlock) + static_cast<size_t>(row) * kBlock + column % kBlock,
            hn::Load(DF(), scales + static_cast<size_t>(row / kScaledValues) * kSpanTokens + column)};
  }
  HWY_INLINE int RunEnd(int row) const { return (row / kScaledValues + 1) * kScaledValues; }
};
struct CodedValues {
  Cells cells;
  const float* scales;
  size_t v_dim;
  struct Run {
    const int8_t* at;
    const float* scale;
    size_t stride;
    HWY_INLINE V Next() {
      const V x = hn::Mul(FromCodes(at), hn::Set(DF(), *scale++));
      at += stride;
      return x;
    }
  };
  HWY_INLINE const int8_t* At(int row, size_t column) const {
    return cells.As<int8_t>(static_cast<size_t>(row / kBlock)) + static_cast<size_t>(row % kBlock) * v_dim + column;
  }
  HWY_INLINE const float* ScaleAt(int row, size_t column) const {
    return scales + column / kScaledValues * kSpanTokens + static_cast<size_t>(row);
  }
  HWY_INLINE Run RunAt(int row, size_t column) const { return {At(row, column), ScaleAt(row, column), v_dim}; }
  HWY_INLINE V Rest(int row, size_t column) const {
    HWY_ALIGN int8_t rest[kLanes] = {};
    std::copy(At(row, column), At(row, v_dim), rest);
    return hn::Mul(FromCodes(rest), hn::Set(DF(), *ScaleAt(row, column)));
  }
  HWY_INLINE int RunEnd(int row) const { return (row / kBlock + 1) * kBlock; }
};
static_assert(kScaledValues % kBlock == 0);  // a vector of values has one scale

// c[m][column .. + N vectors) (+)= sum over j in [begin, end) of a[m][j] * b[j][...], one FMA chain per
// element, in order of j.
template <int M, size_t N, bool kFromZero, class Rows>
HWY_INLINE void MultiplyTile(const float* const* a, int begin, int end, const Rows& b, size_t column, float* c,
                             size_t c_stride) {
  const DF d;
  V sum[M][N];
  HWY_UNROLL(8)
  for (int m = 0; m < M; ++m) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < N; ++i) {
      sum[m][i] = kFromZero ? hn::Zero(d) : hn::Load(d, c + m * c_stride + column + i * kLanes);
    }
  }
  for (int j = begin; j < end;) {
    const int run_end = std::min(end, b.RunEnd(j));
    decltype(b.RunAt(j, column)) run[N];
    HWY_UNROLL(4)
    for (size_t i = 0; i < N; ++i) run[i] = b.RunAt(j, column + i * kLanes);
    for (; j < run_end; ++j) {
      V x[N];
      HWY_UNROLL(4)
      for (size_t i = 0; i < N; ++i) x[i] = run[i].Next();
      HWY_UNROLL(8)
      for (int m = 0; m < M; ++m) {
        const V y = hn::Set(d, a[m][j]);
        HWY_UNROLL(4)
        for (size_t i = 0; i < N; ++i) sum[m][i] = hn::MulAdd(y, x[i], sum[m][i]);
      }
    }
  }
  HWY_UNROLL(8)
  for (int m = 0; m < M; ++m) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < N; ++i) hn::Store(sum[m][i], d, c + m * c_stride + column + i * kLanes);
  }
}

// The same over columns [first, last), multiples of kLanes.
template <int M, bool kFromZero, class Rows>
HWY_NOINLINE void MultiplyRows(const float* const* a, int begin, int end, const Rows& b, size_t first, size_t last,
                               float* c, size_t c_stride) {
  constexpr size_t kVectors = M <= 4 ? kTileVectors : kTileVectors / 2;
  size_t i = first;
  for (; i + kVectors * kLanes <= last; i += kVectors * kLanes) {
    MultiplyTile<M, kVectors, kFromZero>(a, begin, end, b, i, c, c_stride);
  }
  for (; i < last; i += kLanes) MultiplyTile<M, 1, kFromZero>(a, begin, end, b, i, c, c_stride);
}

template <bool kFromZero, class Rows>
HWY_INLINE void Multiply(int rows, const float* const* a, int begin, int end, const Rows& b, size_t first, size_t last,
                         float* c, size_t c_stride) {
  static_assert(kMaxTilePairs == 8);
  switch (rows) {
    case 1:
      return MultiplyRows<1, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 2:
      return MultiplyRows<2, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 3:
      return MultiplyRows<3, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 4:
      return MultiplyRows<4, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 5:
      return MultiplyRows<5, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 6:
      return MultiplyRows<6, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    case 7:
      return MultiplyRows<7, kFromZero>(a, begin, end, b, first, last, c, c_stride);
    default:
      return MultiplyRows<8, kFromZero>(a, begin, end, b, first, last, c, c_stride);
  }
}

// Blocks [first, last) of a span, widened to [k_dim][kSpanTokens].
template <class Keys>
HWY_NOINLINE void WidenKeys(const Keys& k, size_t k_dim, int first, int last, float* keys) {
  for (size_t i = 0; i < k_dim; ++i) {
    for (size_t j = static_cast<size_t>(first) * kBlock; j < static_cast<size_t>(last) * kBlock; j += kLanes) {
      hn::Store(k.RunAt(static_cast<int>(i), j).Next(), DF(), keys + i * kSpanTokens + j);
    }
  }
}

// The same to [kSpanTokens][v_pad] (padding is 0).
template <class Values>
HWY_NOINLINE void WidenValues(const Values& v, int first, int last, float* values, size_t v_pad) {
  const DF d;
  for (int j = first * kBlock; j < last * kBlock; ++j) {
    float* to = values + static_cast<size_t>(j) * v_pad;
    size_t i = 0;
    for (; i + kLanes <= v.v_dim; i += kLanes) hn::Store(v.RunAt(j, i).Next(), d, to + i);
    if (i < v.v_dim) {
      hn::Store(v.Rest(j, i), d, to + i);
      i += kLanes;
    }
    for (; i < v_pad; i += kLanes) hn::Store(hn::Zero(d), d, to + i);
  }
}

HWY_INLINE V Score(const AttentionShape& shape, V dot) {
  const DF d;
  const V scaled = hn::Mul(dot, hn::Set(d, shape.scale));
  if (!(shape.softcap > 0)) return scaled;
  const V y = hn::Div(scaled, hn::Set(d, shape.softcap));
  return hn::IfThenElse(hn::IsNaN(y), y, hn::Mul(hn::Set(d, shape.softcap), hn::Tanh(d, y)));
}

// Turns the dot products scores[first, last) into scores, of which only [seen.begin, seen.end) are not
// -infinity, and returns the greater of `maximum` and theirs.
HWY_NOINLINE float FinishScores(const AttentionShape& shape, Visible seen, int first, int last, float* scores,
                                float maximum) {
  const DF d;
  const DI di;
  const V none = hn::Set(d, -std::numeric_limits<float>::infinity());
  V highest = none;
  for (int i = first; i < last; i += static_cast<int>(kLanes)) {
    V x = Score(shape, hn::Load(d, scores + i));
    if (i < seen.begin || i + static_cast<int>(kLanes) > seen.end) {
      const auto position = hn::Iota(di, i);
      const auto keep = hn::And(hn::Ge(position, hn::Set(di, seen.begin)), hn::Lt(position, hn::Set(di, seen.end)));
      x = hn::IfThenElse(hn::RebindMask(d, keep), x, none);
    }
    hn::Store(x, d, scores + i);
    highest = hn::Max(highest, x);
  }
  return std::max(maximum, hn::ReduceMax(d, highest));
}

HWY_INLINE float SumOfLanes(const float* sums) {
  float s[kBlock];
  std::copy(sums, sums + kBlock, s);
  for (int half = kBlock / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  }
  return s[0];
}

// Turns the scores [first, last) of one pair (whole blocks) into e^(s - maximum); returns their sum.
HWY_NOINLINE float Exponentials(float* scores, int first, int last, float maximum) {
  const DF d;
  const V highest = hn::Set(d, maximum);
  V sums[kBlock / kLanes];
  HWY_UNROLL(16)
  for (size_t i = 0; i < kBlock / kLanes; ++i) sums[i] = hn::Zero(d);
  for (float* block = scores + first; block < scores + last; block += kBlock) {
    HWY_UNROLL(16)
    for (size_t i = 0; i < kBlock / kLanes; ++i) {
      const V weight = ExpNegative(hn::Sub(hn::Load(d, block + i * kLanes), highest));
      hn::Store(weight, d, block + i * kLanes);
      sums[i] = hn::Add(sums[i], weight);
    }
  }
  HWY_ALIGN float lanes[kBlock];
  HWY_UNROLL(16)
  for (size_t i = 0; i < kBlock / kLanes; ++i) hn::Store(sums[i], d, lanes + i * kLanes);
  return SumOfLanes(lanes);
}

// weights[first, last) times `factor`, rounded to f16 where the cache is no wider.
template <class Cache>
HWY_INLINE void NormaliseWeights(float* weights, int first, int last, float factor) {
  const DF d;
  if (std::isnan(factor)) return std::fill(weights + first, weights + last, factor);  // an f16 conversion may lose NaN
  const V by = hn::Set(d, factor);
  for (int i = first; i < last; i += static_cast<int>(kLanes)) {
    const V x = hn::Mul(hn::Load(d, weights + i), by);
    hn::Store(Cache::kRoundsWeights ? hn::PromoteTo(d, hn::DemoteTo(DH(), x)) : x, d, weights + i);
  }
}

// acc[m] += weights[m] * values over what each pair sees. The part that all see is done together, what only
// some see pair by pair, before and after, so that each pair adds its positions in order and touches no
// others.
template <class Rows>
HWY_INLINE void AddValues(int n, const Visible* seen, const float* const* weights, const Rows& values, size_t v_pad,
                          float* acc) {
  int begin = seen[0].begin, end = seen[0].end;
  for (int m = 1; m < n; ++m) {
    begin = std::max(begin, seen[m].begin);
    end = std::min(end, seen[m].end);
  }
  const bool together = begin < end;
  for (int m = 0; m < n; ++m) {
    const int until = together ? begin : seen[m].end;
    if (seen[m].begin < until) {
      MultiplyRows<1, false>(weights + m, seen[m].begin, until, values, 0, v_pad, acc + m * v_pad, v_pad);
    }
  }
  if (!together) return;
  Multiply<false>(n, weights, begin, end, values, 0, v_pad, acc, v_pad);
  for (int m = 0; m < n; ++m) {
    if (end < seen[m].end) {
      MultiplyRows<1, false>(weights + m, end, seen[m].end, values, 0, v_pad, acc + m * v_pad, v_pad);
    }
  }
}

HWY_INLINE void WriteOutput(const float* acc, size_t v_dim, float* out) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= v_dim; i += kLanes) hn::StoreU(hn::Load(d, acc + i), d, out + i);
  for (; i < v_dim; ++i) out[i] = acc[i];
}

// What AttendUnit works on from span to span.
struct UnitWork {
  const AttentionShape& shape;
  const AttentionUnit& unit;
  const float* q;  // of the unit's first row and head
  size_t q_stride;
  size_t k_dim;
  size_t v_pad;
  int origin;     // the position of scores[0]: where the unit's first span begins
  float* scores;  // [pairs][score_stride]: dot products, then scores, then weights
  size_t score_stride;
  float* maxima;  // [pairs]; after the first pass the factors that make the weights' sum 1
  float* acc;     // [pairs][v_pad]
};

// What the pairs [pair, pair + n) see of the span at `base`, n <= kMaxTilePairs: `seen` of each (empty when
// begin >= end), and the blocks that hold what any sees.
struct TileView {
  Visible seen[kMaxTilePairs];
  int begin = kSpanTokens;
  int end = 0;
};
HWY_INLINE TileView ViewOf(const UnitWork& work, int base, int pair, int n) {
  TileView view;
  const int position = work.unit.segment->first_position + work.unit.row;
  for (int m = 0; m < n; ++m) {
    const Visible visible = VisibleFrom(position + (pair + m) / work.unit.heads, work.shape.window);
    Visible& seen = view.seen[m];
    seen = {std::max(visible.begin - base, 0), std::min(visible.end - base, kSpanTokens)};
    if (seen.begin >= seen.end) continue;
    view.begin = std::min(view.begin, seen.begin / kBlock * kBlock);
    view.end = std::max(view.end, (seen.end + kBlock - 1) / kBlock * kBlock);
  }
  return view;
}

// The scores of one span for all pairs of a unit, `tile` at a time.
template <class Keys>
HWY_INLINE void ScoreSpan(const UnitWork& work, int base, int tile, const Keys& keys) {
  const int pairs = work.unit.pairs();
  for (int pair = 0; pair < pairs; pair += tile) {
    const int n = std::min(tile, pairs - pair);
    const TileView view = ViewOf(work, base, pair, n);
    if (view.begin >= view.end) continue;
    const float* query[kMaxTilePairs];
    for (int m = 0; m < n; ++m) {
      const int row = (pair + m) / work.unit.heads, head = (pair + m) % work.unit.heads;
      query[m] = work.q + static_cast<size_t>(row) * work.q_stride + static_cast<size_t>(head) * work.k_dim;
    }
    float* scores = work.scores + static_cast<size_t>(pair) * work.score_stride + (base - work.origin);
    Multiply<true>(n, query, 0, static_cast<int>(work.k_dim), keys, static_cast<size_t>(view.begin),
                   static_cast<size_t>(view.end), scores, work.score_stride);
    for (int m = 0; m < n; ++m) {
      work.maxima[pair + m] = FinishScores(work.shape, view.seen[m], view.begin, view.end,
                                           scores + static_cast<size_t>(m) * work.score_stride, work.maxima[pair + m]);
    }
  }
}

// The softmax of every pair over all it sees, but for the division by the sum.
HWY_INLINE void SoftmaxUnit(const UnitWork& work) {
  const int position = work.unit.segment->first_position + work.unit.row;
  for (int pair = 0; pair < work.unit.pairs(); ++pair) {
    const Visible visible = VisibleFrom(position + pair / work.unit.heads, work.shape.window);
    const int first = (visible.begin - work.origin) / kBlock * kBlock;
    const int last = (visible.end - work.origin + kBlock - 1) / kBlock * kBlock;
    float* scores = work.scores + static_cast<size_t>(pair) * work.score_stride;
    work.maxima[pair] = 1.0f / Exponentials(scores, first, last, work.maxima[pair]);
  }
}

// Adds the values of one span, weighted.
template <class Cache, class Values>
HWY_INLINE void AddSpan(const UnitWork& work, int base, int tile, const Values& values) {
  const int pairs = work.unit.pairs();
  for (int pair = 0; pair < pairs; pair += tile) {
    const int n = std::min(tile, pairs - pair);
    const TileView view = ViewOf(work, base, pair, n);
    if (view.begin >= view.end) continue;
    const float* weights[kMaxTilePairs];
    for (int m = 0; m < n; ++m) {
      float* own = work.scores + static_cast<size_t>(pair + m) * work.score_stride + (base - work.origin);
      weights[m] = own;
      const Visible seen = view.seen[m];
      if (seen.begin >= seen.end) continue;
      NormaliseWeights<Cache>(own, seen.begin / kBlock * kBlock, (seen.end + kBlock - 1) / kBlock * kBlock,
                              work.maxima[pair + m]);
    }
    AddValues(n, view.seen, weights, values, work.v_pad, work.acc + static_cast<size_t>(pair) * work.v_pad);
  }
}

// The spans of a unit in order: visit(base, first block, last block, their cells of `pool`).
template <class Visit>
HWY_INLINE void ForEachSpan(const KvLayer& layer, const AttentionUnit& unit, int begin, int end, const std::byte* pool,
                            size_t cell_bytes, Visit&& visit) {
  for (int base = begin / kSpanTokens * kSpanTokens; base < end; base += kSpanTokens) {
    const int first = std::max(0, begin - base) / kBlock;
    const int last = (std::min(end - base, kSpanTokens) + kBlock - 1) / kBlock;
    Cells cells;
    for (int b = first; b < last; ++b) {
      const BlockId block = unit.segment->blocks[static_cast<size_t>(base / kBlock + b)];
      const size_t cell =
          static_cast<size_t>(block) * static_cast<size_t>(layer.kv_heads) + static_cast<size_t>(unit.kv_head);
      cells.block[b] = pool + cell * cell_bytes;
    }
    visit(base, first, last, cells);
  }
}

// How the cells of a span are read, by the cache's type.
template <class T>
struct PlainCache {
  static constexpr KvType kType = sizeof(T) == sizeof(float) ? KvType::kF32 : KvType::kF16;
  static constexpr bool kRoundsWeights = kType != KvType::kF32;
  static HWY_INLINE PlainKeys<T> Keys(const Cells& cells, int, int, int, AttentionScratch&) { return {cells}; }
  static HWY_INLINE PlainValues<T> Values(const Cells& cells, int, int, int v_dim, AttentionScratch&) {
    return {cells, static_cast<size_t>(v_dim)};
  }
};
struct CodedCache {
  static constexpr KvType kType = KvType::kQ8_0;
  static constexpr bool kRoundsWeights = true;
  static HWY_INLINE CodedKeys Keys(const Cells& cells, int first, int last, int k_dim, AttentionScratch& scratch) {
    return {cells, WidenScales(cells, first, last, k_dim, scratch)};
  }
  static HWY_INLINE CodedValues Values(const Cells& cells, int first, int last, int v_dim, AttentionScratch& scratch) {
    return {cells, WidenScales(cells, first, last, v_dim, scratch), static_cast<size_t>(v_dim)};
  }
  static HWY_NOINLINE const float* WidenScales(const Cells& cells, int first, int last, int dim,
                                               AttentionScratch& scratch) {
    const DF d;
    float* scales = scratch.scales.Get(ScalesOf(dim) * kSpanTokens);
    for (size_t b = static_cast<size_t>(first); b < static_cast<size_t>(last); ++b) {
      const auto* from = reinterpret_cast<const uint16_t*>(cells.block[b] + static_cast<size_t>(dim) * kBlock);
      for (size_t g = 0; g < ScalesOf(dim); ++g) {
        for (size_t j = 0; j < kBlock; j += kLanes) {
          // An f16 conversion may lose NaN.
          const auto bits = hn::PromoteTo(DI(), hn::LoadU(DU16(), from + g * kBlock + j));
          const auto none = hn::RebindMask(d, hn::Eq(bits, hn::Set(DI(), kNoScale)));
          const V scale = hn::IfThenElse(none, hn::NaN(d), FromHalf(from + g * kBlock + j));
          hn::Store(scale, d, scales + g * kSpanTokens + b * kBlock + j);
        }
      }
    }
    return scales;
  }
};

template <class Cache>
HWY_INLINE void AttendCached(const KvLayer& layer, const AttentionShape& shape, const AttentionUnit& unit,
                             const float* q, size_t q_stride, float* out, size_t out_stride,
                             AttentionScratch& scratch) {
  const size_t v_dim = static_cast<size_t>(layer.v_dim);
  const size_t v_pad = (v_dim + kBlock - 1) / kBlock * kBlock;
  const size_t k_dim = static_cast<size_t>(layer.k_dim);
  const size_t pairs = static_cast<size_t>(unit.pairs());
  const size_t first_row = static_cast<size_t>(unit.segment->first_row + unit.row);
  const int position = unit.segment->first_position + unit.row;
  const int begin = VisibleFrom(position, shape.window).begin, end = position + unit.rows;
  const int origin = begin / kSpanTokens * kSpanTokens;
  const size_t score_stride = ScoreStride(end - origin);
  const UnitWork work{.shape = shape,
                      .unit = unit,
                      .q = q + first_row * q_stride + static_cast<size_t>(unit.head) * k_dim,
                      .q_stride = q_stride,
                      .k_dim = k_dim,
                      .v_pad = v_pad,
                      .origin = origin,
                      .scores = scratch.scores.Get(pairs * score_stride),
                      .score_stride = score_stride,
                      .maxima = scratch.maxima.Get(kUnitPairs),
                      .acc = scratch.acc.Get(v_pad * kUnitPairs)};
  std::fill_n(work.acc, v_pad * pairs, 0.0f);
  std::fill_n(work.maxima, pairs, -std::numeric_limits<float>::infinity());

  // Few pairs read the cache as it is; many share one widening of it.
  const bool direct = unit.pairs() <= kDirectPairs && v_dim == v_pad;
  float* wide_keys = direct ? nullptr : scratch.keys.Get(k_dim * kSpanTokens);
  float* wide_values = direct ? nullptr : scratch.values.Get(v_pad * kSpanTokens);
  ForEachSpan(layer, unit, begin, end, layer.k, CellBytes(Cache::kType, layer.k_dim),
              [&](int base, int first, int last, const Cells& cells) {
                const auto keys = Cache::Keys(cells, first, last, layer.k_dim, scratch);
                if (direct) return ScoreSpan(work, base, kMaxTilePairs, keys);
                WidenKeys(keys, k_dim, first, last, wide_keys);
                ScoreSpan(work, base, kWideTilePairs, WideRows{wide_keys, kSpanTokens});
              });
  SoftmaxUnit(work);
  ForEachSpan(layer, unit, begin, end, layer.v, CellBytes(Cache::kType, layer.v_dim),
              [&](int base, int first, int last, const Cells& cells) {
                const auto values = Cache::Values(cells, first, last, layer.v_dim, scratch);
                if (direct) return AddSpan<Cache>(work, base, kMaxTilePairs, values);
                WidenValues(values, first, last, wide_values, v_pad);
                AddSpan<Cache>(work, base, kWideTilePairs, WideRows{wide_values, v_pad});
              });
  size_t row = 0, head = 0;
  for (size_t pair = 0; pair < pairs; ++pair) {
    WriteOutput(work.acc + pair * v_pad, v_dim,
                out + (first_row + row) * out_stride + (static_cast<size_t>(unit.head) + head) * v_dim);
    if (++head == static_cast<size_t>(unit.heads)) head = 0, ++row;
  }
}

void AttendUnit(const KvLayer& layer, const AttentionShape& shape, const AttentionUnit& unit, const float* q,
                size_t q_stride, float* out, size_t out_stride, AttentionScratch& scratch) {
  switch (layer.type) {
    case KvType::kF16:
      return AttendCached<PlainCache<uint16_t>>(layer, shape, unit, q, q_stride, out, out_stride, scratch);
    case KvType::kQ8_0:
      return AttendCached<CodedCache>(layer, shape, unit, q, q_stride, out, out_stride, scratch);
    case KvType::kF32:
      return AttendCached<PlainCache<float>>(layer, shape, unit, q, q_stride, out, out_stride, scratch);
  }
}

HWY_INLINE void ToHalf(const float* from, size_t n, uint16_t* to) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::BitCast(DU16(), hn::DemoteTo(DH(), hn::LoadU(d, from + i))), DU16(), to + i);
  }
  if (i < n) {
    HWY_ALIGN float rest[kLanes] = {};
    HWY_ALIGN uint16_t half[kLanes];
    std::copy(from + i, from + n, rest);
    hn::Store(hn::BitCast(DU16(), hn::DemoteTo(DH(), hn::Load(d, rest))), DU16(), half);
    std::copy(half, half + (n - i), to + i);
  }
}

HWY_INLINE void StoreHalves(const BlockRows& from, size_t k_dim, size_t v_dim, uint16_t* keys, uint16_t* values) {
  constexpr size_t kPiece = 64;
  uint16_t half[kBlock][kPiece];
  for (size_t begin = 0; begin < k_dim; begin += kPiece) {
    const size_t n = std::min(kPiece, k_dim - begin);
    for (int r = 0; r < from.rows; ++r) {
      ToHalf(from.k + static_cast<size_t>(r) * from.k_stride + begin, n, half[r]);
    }
    for (size_t i = 0; i < n; ++i) {
      for (int r = 0; r < from.rows; ++r) keys[(begin + i) * kBlock + static_cast<size_t>(from.first + r)] = half[r][i];
    }
  }
  for (int r = 0; r < from.rows; ++r) {
    ToHalf(from.v + static_cast<size_t>(r) * from.v_stride, v_dim,
           values + static_cast<size_t>(from.first + r) * v_dim);
  }
}

HWY_INLINE void StoreFloats(const BlockRows& from, size_t k_dim, size_t v_dim, float* keys, float* values) {
  for (int r = 0; r < from.rows; ++r) {
    const size_t row = static_cast<size_t>(r), cell = static_cast<size_t>(from.first + r);
    const float* k = from.k + row * from.k_stride;
    for (size_t i = 0; i < k_dim; ++i) keys[i * kBlock + cell] = k[i];
    const float* v = from.v + row * from.v_stride;
    std::copy(v, v + v_dim, values + cell * v_dim);
  }
}

// The largest magnitude's bits: NaN counts as the largest.
HWY_INLINE int32_t LargestBits(const float* group) {
  const DI di;
  auto largest = hn::Zero(di);
  for (size_t i = 0; i < kScaledValues; i += kLanes) {
    const auto bits = hn::BitCast(di, hn::Load(DF(), group + i));
    largest = hn::Max(largest, hn::And(bits, hn::Set(di, 0x7fffffff)));
  }
  return hn::ReduceMax(di, largest);
}

HWY_INLINE void ToCodes(const float* group, float inverse, int8_t* codes) {
  const DI di;
  const V by = hn::Set(DF(), inverse);
  for (size_t i = 0; i < kScaledValues; i += kLanes) {
    const auto nearest = hn::NearestInt(hn::Mul(hn::Load(DF(), group + i), by));
    const auto code = hn::Min(hn::Max(nearest, hn::Set(di, -127)), hn::Set(di, 127));
    hn::StoreU(hn::DemoteTo(DI8(), code), DI8(), codes + i);
  }
}

// Codes and scales of some rows: put(row, dimension, codes, how many).
template <class Put>
HWY_INLINE void StoreCodes(const float* from, size_t stride, int first, int rows, size_t dim, uint16_t* scales,
                           Put&& put) {
  constexpr size_t kGroup = kScaledValues;
  HWY_ALIGN float group[kBlock][kGroup];
  HWY_ALIGN int8_t codes[kGroup];
  HWY_ALIGN float scale[kBlock] = {};
  HWY_ALIGN uint16_t half[kBlock];
  bool finite[kBlock];
  for (size_t begin = 0; begin < dim; begin += kGroup) {
    const size_t n = std::min(kGroup, dim - begin);
    for (int r = 0; r < rows; ++r) {
      const float* row = from + static_cast<size_t>(r) * stride + begin;
      std::fill(std::copy(row, row + n, group[r]), group[r] + kGroup, 0.0f);
      scale[r] = hwy::BitCastScalar<float>(LargestBits(group[r])) / 127.0f;
      finite[r] = scale[r] < 65520.0f;  // from there on, f16 is infinite; false for NaN
    }
    ToHalf(scale, kBlock, half);
    for (size_t i = 0; i < kBlock; i += kLanes) hn::Store(FromHalf(half + i), DF(), scale + i);
    for (int r = 0; r < rows; ++r) {
      scales[begin / kGroup * kBlock + static_cast<size_t>(first + r)] = finite[r] ? half[r] : kNoScale;
      if (finite[r] && scale[r] > 0) {
        ToCodes(group[r], 1.0f / scale[r], codes);
      } else {
        std::fill_n(codes, kGroup, int8_t{0});
      }
      put(static_cast<size_t>(first + r), begin, codes, n);
    }
  }
}

void StoreBlock(const KvLayer& layer, BlockId block, int kv_head, const BlockRows& from) {
  const size_t cell = static_cast<size_t>(block) * static_cast<size_t>(layer.kv_heads) + static_cast<size_t>(kv_head);
  const size_t k_dim = static_cast<size_t>(layer.k_dim), v_dim = static_cast<size_t>(layer.v_dim);
  std::byte* keys = layer.k + cell * CellBytes(layer.type, layer.k_dim);
  std::byte* values = layer.v + cell * CellBytes(layer.type, layer.v_dim);
  if (layer.type == KvType::kF16) {
    return StoreHalves(from, k_dim, v_dim, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
  }
  if (layer.type == KvType::kF32) {
    return StoreFloats(from, k_dim, v_dim, reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values));
  }
  auto* k_codes = reinterpret_cast<int8_t*>(keys);
  auto* v_codes = reinterpret_cast<int8_t*>(values);
  StoreCodes(from.k, from.k_stride, from.first, from.rows, k_dim, reinterpret_cast<uint16_t*>(keys + k_dim * kBlock),
             [&](size_t row, size_t i, const int8_t* codes, size_t n) {
               for (size_t x = 0; x < n; ++x) k_codes[(i + x) * kBlock + row] = codes[x];
             });
  StoreCodes(from.v, from.v_stride, from.first, from.rows, v_dim, reinterpret_cast<uint16_t*>(values + v_dim * kBlock),
             [&](size_t row, size_t i, const int8_t* codes, size_t n) {
               std::copy(codes, codes + n, v_codes + row * v_dim + i);
             });
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels {
namespace {

HWY_EXPORT(AttendUnit);
HWY_EXPORT(StoreBlock);

// Without this the first pointer taken is one that asks the processor again at every call.
void ChooseTarget() {
  if (!hwy::GetChosenTarget().IsInitialized()) hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// How the rows and heads of a step are cut into units. It depends on the number of threads and on the longest
// sequence; results do not.
struct Cut {
  int max_rows = 1;
  int max_heads = 1;
};
Cut ChooseCut(const KvLayer& layer, const AttentionShape& shape, std::span<const Segment> segments, int nth) {
  int64_t rows = 0;
  int longest = 1;
  for (const Segment& segment : segments) {
    rows += segment.rows;
    longest = std::max(longest, segment.first_position + segment.rows);
  }
  // A unit of rows with a window sees the window, the rows and what rounding to spans adds.
  constexpr int kMore = kUnitPairs + kSpanTokens;
  if (shape.window > 0 && longest > kMore && shape.window < longest - kMore) longest = shape.window + kMore;
  const int64_t lines = rows * layer.kv_heads;  // a line: one row, one KV head
  const int heads = std::min(shape.group, shape.heads);
  const int unit_pairs = static_cast<int>(
      std::clamp<size_t>(kUnitScores / ScoreStride(longest), size_t{kMaxTilePairs}, size_t{kUnitPairs}));
  Cut cut{.max_rows = 1, .max_heads = std::min(heads, unit_pairs)};
  if (lines < nth) {
    cut.max_heads = static_cast<int>(std::clamp<int64_t>(heads * lines / nth, 1, cut.max_heads));
  } else {
    const int64_t fair = lines / (int64_t{4} * nth);  // some units per thread, to even out their lengths
    cut.max_rows = static_cast<int>(std::clamp<int64_t>(fair, 1, std::max(1, unit_pairs / cut.max_heads)));
  }
  return cut;
}

template <class Visit>
void ForEachUnit(const KvLayer& layer, const AttentionShape& shape, std::span<const Segment> segments, Cut cut,
                 Visit&& visit) {
  for (const Segment& segment : segments) {
    for (int row = 0; row < segment.rows; row += cut.max_rows) {
      const int rows = std::min(cut.max_rows, segment.rows - row);
      for (int kv = 0; kv < layer.kv_heads; ++kv) {
        // A rank may hold only some heads of a group.
        const int64_t group_begin = (int64_t{kv} + shape.first_kv_head) * shape.group - shape.first_head;
        const int begin = static_cast<int>(std::clamp<int64_t>(group_begin, 0, shape.heads));
        const int end = static_cast<int>(std::clamp<int64_t>(group_begin + shape.group, 0, shape.heads));
        for (int head = begin; head < end; head += cut.max_heads) {
          visit(AttentionUnit{.segment = &segment,
                              .row = row,
                              .rows = rows,
                              .kv_head = kv,
                              .head = head,
                              .heads = std::min(cut.max_heads, end - head)});
        }
      }
    }
  }
}

int64_t CostOf(const AttentionUnit& unit, int window) {
  const int position = unit.segment->first_position + unit.row;
  const int64_t positions = position + unit.rows - VisibleFrom(position, window).begin;
  return positions * (unit.pairs() + kMaxTilePairs);  // widening costs about as much as one tile
}

}  // namespace

void Attend(const KvLayer& layer, const AttentionShape& shape, std::span<const Segment> segments, const float* q,
            size_t q_stride, float* out, size_t out_stride, int ith, int nth) {
  SHOAL_CHECK(nth > 0 && ith >= 0 && ith < nth && shape.group > 0 && layer.k_dim > 0 && layer.v_dim > 0);
  if (shape.heads == 0) return;
  SHOAL_CHECK(shape.first_head / shape.group >= shape.first_kv_head &&
              (shape.first_head + shape.heads - 1) / shape.group < shape.first_kv_head + layer.kv_heads);
  if (q_stride == 0) q_stride = static_cast<size_t>(shape.heads) * static_cast<size_t>(layer.k_dim);
  if (out_stride == 0) out_stride = static_cast<size_t>(shape.heads) * static_cast<size_t>(layer.v_dim);
  for (const Segment& segment : segments) {
    SHOAL_CHECK(segment.rows >= 0 && segment.first_position >= 0 &&
                int64_t{segment.first_position} + segment.rows <= static_cast<int64_t>(segment.blocks.size()) * kBlock);
  }
  const Cut cut = ChooseCut(layer, shape, segments, nth);
  int64_t total = 0;
  if (nth > 1) {
    ForEachUnit(layer, shape, segments, cut, [&](const AttentionUnit& unit) { total += CostOf(unit, shape.window); });
  }
  thread_local AttentionScratch scratch;
  ChooseTarget();
  const auto attend = HWY_DYNAMIC_POINTER(AttendUnit);
  int64_t done = 0;
  ForEachUnit(layer, shape, segments, cut, [&](const AttentionUnit& unit) {
    if (nth > 1) {
      const int64_t cost = CostOf(unit, shape.window);
      const int64_t owner = (done + cost / 2) * nth / total;
      done += cost;
      if (owner != ith) return;
    }
    attend(layer, shape, unit, q, q_stride, out, out_stride, scratch);
  });
}

void StoreKv(const KvLayer& layer, std::span<const Segment> segments, const float* k, size_t k_stride, const float* v,
             size_t v_stride, int ith, int nth) {
  SHOAL_CHECK(nth > 0 && ith >= 0 && ith < nth && layer.k_dim > 0 && layer.v_dim > 0);
  const size_t k_dim = static_cast<size_t>(layer.k_dim), v_dim = static_cast<size_t>(layer.v_dim);
  if (k_stride == 0) k_stride = static_cast<size_t>(layer.kv_heads) * k_dim;
  if (v_stride == 0) v_stride = static_cast<size_t>(layer.kv_heads) * v_dim;
  ChooseTarget();
  const auto store = HWY_DYNAMIC_POINTER(StoreBlock);
  int64_t unit = 0;  // a block of one KV head: no cache line belongs to two threads (where a head's block is
                     // whole lines)
  for (const Segment& segment : segments) {
    SHOAL_CHECK(segment.rows >= 0 && segment.first_position >= 0 &&
                int64_t{segment.first_position} + segment.rows <= static_cast<int64_t>(segment.blocks.size()) * kBlock);
    for (int row = 0; row < segment.rows;) {
      const int position = segment.first_position + row;
      const int first = position % kBlock;
      const int rows = std::min(kBlock - first, segment.rows - row);
      const size_t source = static_cast<size_t>(segment.first_row + row);
      for (int kv = 0; kv < layer.kv_heads; ++kv) {
        if (unit++ % nth != ith) continue;
        store(layer, segment.blocks[static_cast<size_t>(position / kBlock)], kv,
              {.first = first,
               .rows = rows,
               .k = k + source * k_stride + static_cast<size_t>(kv) * k_dim,
               .k_stride = k_stride,
               .v = v + source * v_stride + static_cast<size_t>(kv) * v_dim,
               .v_stride = v_stride});
      }
      row += rows;
    }
  }
}

}  // namespace shoal::kernels
#endif
