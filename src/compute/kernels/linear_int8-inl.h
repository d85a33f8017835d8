// What: products with quantised weights: int8 activations, exact integer dot products over 32 (or 16) columns, then one fused
// multiply-add per block with weight scale * activation scale, in block order.
//
// The definition, per output row and slice (sum starts at 0), for each 32-block with activation a:
//   whole scales   dot = sum over 32 of (code - offset) * q;  sum = fma(dot, w * a.scale, sum)
//   half scales    the same for columns 0..15, then 16..31
//   with a min     then sum = fma(+-min, a.scaled_sum, sum)   (halves: a.scale * sum of the half's q)
// where w (and min) = f16 scale, or f16 super-block scale * small integer rounded to f32.
// Included once per target by linear_int8_*.cc, which share out the types (and so the build time).
#if defined(SHOAL_LINEAR_INT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_LINEAR_INT8_INL_H_
#undef SHOAL_LINEAR_INT8_INL_H_
#else
#define SHOAL_LINEAR_INT8_INL_H_
#endif

#include "compute/kernels/linear_lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

// Unsigned codes of the eight column groups for the rows of vector `part`.
template <Format kFormat>
HWY_INLINE void Unpack(const uint8_t* record, int part, VU8 (&u)[8]) {
  const DU8 d8;
  const DU16 d16;
  constexpr RecordShape kShape = ShapeOf(kFormat);
  const uint8_t* at = record + part * kLanes * 4;
  if constexpr (kFormat.bits == CodeBits::k8) {
    HWY_UNROLL(8)
    for (int g = 0; g < 8; ++g) u[g] = hn::LoadU(d8, at + g * 64);
    return;
  }
  const VU8 low = hn::Set(d8, uint8_t{15});
  HWY_UNROLL(4)
  for (int g = 0; g < 4; ++g) {
    const VU8 both = hn::LoadU(d8, at + g * 64);
    u[g] = hn::And(both, low);
    u[g + 4] = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, both))), low);
  }
  if constexpr (kFormat.bits == CodeBits::k5) {
    const auto plane = hn::BitCast(d16, hn::LoadU(d8, at + kShape.plane));
    const VU8 bit = hn::Set(d8, uint8_t{16});
    u[0] = hn::OrAnd(u[0], hn::BitCast(d8, hn::ShiftLeft<4>(plane)), bit);
    u[1] = hn::OrAnd(u[1], hn::BitCast(d8, hn::ShiftLeft<3>(plane)), bit);
    u[2] = hn::OrAnd(u[2], hn::BitCast(d8, hn::ShiftLeft<2>(plane)), bit);
    u[3] = hn::OrAnd(u[3], hn::BitCast(d8, hn::ShiftLeft<1>(plane)), bit);
    u[4] = hn::OrAnd(u[4], hn::BitCast(d8, plane), bit);
    u[5] = hn::OrAnd(u[5], hn::BitCast(d8, hn::ShiftRight<1>(plane)), bit);
    u[6] = hn::OrAnd(u[6], hn::BitCast(d8, hn::ShiftRight<2>(plane)), bit);
    u[7] = hn::OrAnd(u[7], hn::BitCast(d8, hn::ShiftRight<3>(plane)), bit);
  } else if constexpr (kFormat.bits == CodeBits::k6) {
    const VU8 bits = hn::Set(d8, uint8_t{48});
    HWY_UNROLL(2)
    for (int p = 0; p < 2; ++p) {
      const auto plane = hn::BitCast(d16, hn::LoadU(d8, at + kShape.plane + 64 * p));
      u[4 * p] = hn::OrAnd(u[4 * p], hn::BitCast(d8, hn::ShiftLeft<4>(plane)), bits);
      u[4 * p + 1] = hn::OrAnd(u[4 * p + 1], hn::BitCast(d8, hn::ShiftLeft<2>(plane)), bits);
      u[4 * p + 2] = hn::OrAnd(u[4 * p + 2], hn::BitCast(d8, plane), bits);
      u[4 * p + 3] = hn::OrAnd(u[4 * p + 3], hn::BitCast(d8, hn::ShiftRight<2>(plane)), bits);
    }
  } else if constexpr (kFormat.table) {
    const VU8 table = hn::LoadDup128(d8, kNonLinear);
    HWY_UNROLL(8)
    for (int g = 0; g < 8; ++g) u[g] = hn::TableLookupBytes(table, u[g]);
  }
}

// acc + the products of a column group's codes with its four activations, by lane. `four` may be unaligned.
HWY_INLINE VI AddQuad(VI acc, VU8 u, const int8_t* four) {
  using Word = int32_t __attribute__((may_alias, aligned(1)));
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL && HWY_COMPILER_GCC_ACTUAL
  // GCC loads and broadcasts in an instruction of its own, which costs a third of the speed for batches.
  // Volatile keeps the rows in turn.
  __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0"
                   : "+v"(acc.raw)
                   : "v"(u.raw), "m"(*reinterpret_cast<const Word*>(four)));
  return acc;
#else
  const DI di;
  return hn::SumOfMulQuadAccumulate(di, u, hn::BitCast(DI8(), hn::Set(di, *reinterpret_cast<const Word*>(four))), acc);
#endif
}

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
inline constexpr bool kHasQuads = false;  // a group takes two instructions and more
#else
inline constexpr bool kHasQuads = true;
#endif

// acc + the products of groups [kFirst, kFirst + kCount), by way of int16 pairs: without saturation, since a pair is at most
// code * 127 * 2, and 8, 4 or 2 of them fit for codes of 4, 5 or 6 bits.
template <Format kFormat, int kFirst, int kCount>
HWY_INLINE VI AddPairs(VI acc, const VU8 (&u)[8], const int8_t* q) {
  const DI di;
  const DI16 d16;
  const auto quad = [&](int g) HWY_ATTR {
    int32_t four;
    std::memcpy(&four, q + 4 * g, sizeof four);
    return hn::BitCast(DI8(), hn::Set(di, four));
  };
  constexpr int kMost = kFormat.bits == CodeBits::k4 ? 8 : kFormat.bits == CodeBits::k5 ? 4 : 2;
  constexpr int kRun = kMost < kCount ? kMost : kCount;
  HWY_UNROLL(4)
  for (int g = kFirst; g < kFirst + kCount; g += kRun) {
    auto pairs = hn::SatWidenMulPairwiseAdd(d16, u[g], quad(g));
    HWY_UNROLL(8)
    for (int i = 1; i < kRun; ++i) pairs = hn::Add(pairs, hn::SatWidenMulPairwiseAdd(d16, u[g + i], quad(g + i)));
    acc = hn::Add(acc, hn::WidenMulPairwiseAdd(di, pairs, hn::Set(d16, int16_t{1})));
  }
  return acc;
}

// What the offset of the codes takes away, as the start value of a dot product.
template <Format kFormat>
HWY_INLINE VI Start(const Piece& a, int half) {
  const DI di;
  if constexpr (kFormat.halves) {
    const VI minus32 = hn::Set(di, a.minus32[half]);
    if constexpr (kFormat.offset == 32) return minus32;
    if constexpr (kFormat.offset == 4) return hn::ShiftRight<3>(minus32);
    static_assert(kFormat.offset == 32 || kFormat.offset == 4 || kFormat.offset == 0);
    return hn::Zero(di);
  } else {
    if constexpr (kFormat.offset == 8) return hn::Set(di, a.minus8);
    if constexpr (kFormat.offset == 16) return hn::ShiftLeft<1>(hn::Set(di, a.minus8));
    if constexpr (kFormat.offset == 128) return hn::Set(di, a.minus128);
    static_assert(kFormat.offset == 8 || kFormat.offset == 16 || kFormat.offset == 128 || kFormat.offset == 0);
    return hn::Zero(di);
  }
}

// The exact dot products of a block for a few rows: dots[row][half], or [row][0] for scales that serve 32 columns.
template <Format kFormat, int kRows>
HWY_INLINE void Dots(const VU8 (&u)[8], const Piece* const (&a)[kRows], VI (&dots)[kRows][2]) {
  constexpr bool kPairs = !kHasQuads && kFormat.bits != CodeBits::k8 && !kFormat.table;
  // The halves of a lone row run side by side; several rows do already.
  constexpr bool kSplit = kFormat.halves || kRows == 1;
  HWY_UNROLL(4)
  for (int k = 0; k < kRows; ++k) {
    dots[k][0] = Start<kFormat>(*a[k], 0);
    if constexpr (kFormat.halves) {
      dots[k][1] = Start<kFormat>(*a[k], 1);
    } else {
      dots[k][1] = hn::Zero(DI());
    }
  }
  if constexpr (kPairs) {
    HWY_UNROLL(4)
    for (int k = 0; k < kRows; ++k) {
      if constexpr (kFormat.halves) {
        dots[k][0] = AddPairs<kFormat, 0, 4>(dots[k][0], u, a[k]->q);
        dots[k][1] = AddPairs<kFormat, 4, 4>(dots[k][1], u, a[k]->q);
      } else {
        dots[k][0] = AddPairs<kFormat, 0, 8>(dots[k][0], u, a[k]->q);
      }
    }
    return;
  }
  // Rows in turn, so that no instruction waits for the one before it.
  HWY_UNROLL(4)
  for (int g = 0; g < 4; ++g) {
    HWY_UNROLL(4)
    for (int k = 0; k < kRows; ++k) {
      dots[k][0] = AddQuad(dots[k][0], u[g], a[k]->q + 4 * g);
      if constexpr (kSplit) dots[k][1] = AddQuad(dots[k][1], u[g + 4], a[k]->q + 4 * g + 16);
    }
  }
  if constexpr (!kSplit) {
    HWY_UNROLL(4)
    for (int g = 4; g < 8; ++g) {
      HWY_UNROLL(4)
      for (int k = 0; k < kRows; ++k) dots[k][0] = AddQuad(dots[k][0], u[g], a[k]->q + 4 * g);
    }
  }
  if constexpr (kSplit && !kFormat.halves) dots[0][0] = hn::Add(dots[0][0], dots[0][1]);
}

// One block: adds its part to the sums of kRows rows.
template <Format kFormat, int kRows, bool kGather>
HWY_INLINE void AddBlock(const uint8_t* record, const VF (&super)[2][kParts], const NextUnits<Piece, kRows, kGather>& x,
                         VF (&sums)[kRows][kParts]) {
  const DF df;
  constexpr RecordShape kShape = ShapeOf(kFormat);
  constexpr int kHalves = kFormat.halves ? 2 : 1;
  HWY_UNROLL(4)
  for (int part = 0; part < kParts; ++part) {
    VU8 u[8];
    Unpack<kFormat>(record, part, u);
    VF scale[kHalves];
    VF min[kHalves];
    HWY_UNROLL(2)
    for (int h = 0; h < kHalves; ++h) {
      const int row = 16 * h + part * kLanes;
      if constexpr (kFormat.super) {
        scale[h] = hn::Mul(super[0][part], LoadSmall<kFormat.sign>(record + kShape.scales + row));
        if constexpr (kFormat.min != 0) min[h] = hn::Mul(super[1][part], LoadSmall<false>(record + kShape.mins + row));
      } else {
        scale[h] = LoadHalf(record + kShape.scales + 2 * row);
        if constexpr (kFormat.min != 0) min[h] = LoadHalf(record + kShape.mins + 2 * row);
      }
      if constexpr (kFormat.min < 0) min[h] = hn::Neg(min[h]);
    }
    constexpr int kTogether = kRows < 4 ? kRows : 4;
    static_assert(kRows % kTogether == 0);
    HWY_UNROLL(4)
    for (int r0 = 0; r0 < kRows; r0 += kTogether) {
      const Piece* a[kTogether];
      HWY_UNROLL(4)
      for (int k = 0; k < kTogether; ++k) a[k] = x.Of(r0 + k);
      VI dots[kTogether][2];
      Dots<kFormat, kTogether>(u, a, dots);
      HWY_UNROLL(4)
      for (int k = 0; k < kTogether; ++k) {
        VF& sum = sums[r0 + k][part];
        const VF a_scale = hn::Set(df, a[k]->scale);
        HWY_UNROLL(2)
        for (int h = 0; h < kHalves; ++h) sum = Fma(hn::ConvertTo(df, dots[k][h]), hn::Mul(scale[h], a_scale), sum);
        if constexpr (kFormat.min != 0 && !kFormat.halves) sum = Fma(min[0], hn::Set(df, a[k]->scaled_sum), sum);
        if constexpr (kFormat.min != 0 && kFormat.halves) {
          HWY_UNROLL(2)
          for (int h = 0; h < 2; ++h) {
            const float half_sum = a[k]->scale * (static_cast<float>(a[k]->minus32[h]) * (-1.0f / 32));
            sum = Fma(min[h], hn::Set(df, half_sum), sum);
          }
        }
      }
    }
  }
}

template <Format kFormat, int kRows, bool kGather>
HWY_NOINLINE void Int8Rows(const MultiplyJob& job, int64_t panel, int64_t first) {
  const DF df;
  constexpr RecordShape kShape = ShapeOf(kFormat);
  const auto* base = reinterpret_cast<const uint8_t*>(job.panels) + static_cast<size_t>(panel) * job.panel_bytes;
  const int64_t base_block = job.first_column / kBlock;
  NextUnits<Piece, kRows, kGather> x(job, first);
  const size_t stride = job.shape.unit_stride;
  SliceSums<kRows> waiting;
  for (int s = 0; s < job.step_count; ++s) {
    const SliceStep& step = job.steps[s];
    VF sums[kRows][kParts];
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int h = 0; h < kParts; ++h) sums[r][h] = hn::Zero(df);
    }
    for (int64_t block = step.first_block; block < step.end_block;) {
      const uint8_t* record = base + RecordOffset(kShape, base_block, block);
      int64_t end = step.end_block;
      VF super[2][kParts];
      if constexpr (kFormat.super) {
        const int64_t super_begin = block / kSuperBlocks * kSuperBlocks;
        end = HWY_MIN(end, super_begin + kSuperBlocks);
        const int64_t since = block - HWY_MAX(super_begin, base_block);
        const uint8_t* header = record - static_cast<size_t>(since) * kShape.bytes - kShape.header;
        HWY_UNROLL(4)
        for (int h = 0; h < kParts; ++h) {
          super[0][h] = LoadHalf(header + 2 * h * kLanes);
          if constexpr (kFormat.min != 0) super[1][h] = LoadHalf(header + 32 + 2 * h * kLanes);
        }
      }
      for (; block < end; ++block) {
        HWY_UNROLL(10)
        for (size_t p = 0; p < kShape.bytes; p += 64) PrefetchWeights<kRows>(record + p);
        AddBlock<kFormat>(record, super, x, sums);
        record += kShape.bytes;
        x.Advance(stride);
      }
    }
    waiting.Finish(job, step, panel, first, sums);
  }
}

template <Format kFormat>
void Int8Panels(const MultiplyJob& job) {
  // The fewer variants, the shorter the build: only the best target has them all. Rows that follow each other are in one
  // group as long as the steps are powers of two.
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  constexpr bool kMany = true;
#else
  constexpr bool kMany = false;
#endif
  const bool gather = job.which != nullptr;
  for (int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
    int64_t i = 0;
    if constexpr (kMany) {
      for (; !gather && job.n - i >= 8; i += 8) Int8Rows<kFormat, 8, false>(job, panel, i);
      if (!gather && job.n - i >= 4) Int8Rows<kFormat, 4, false>(job, panel, i), i += 4;
      if (!gather && job.n - i >= 2) Int8Rows<kFormat, 2, false>(job, panel, i), i += 2;
    }
    if constexpr (HWY_TARGET != HWY_EMU128) {
      for (; job.n - i >= 4; i += 4) Int8Rows<kFormat, 4, true>(job, panel, i);
    }
    for (; i < job.n; ++i) Int8Rows<kFormat, 1, false>(job, panel, i);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear
HWY_AFTER_NAMESPACE();

#endif
