// What: the vector words that the kernels of one target share: a panel's 16 rows as kParts vectors, the fused multiply-add,
// the waiting sums of the slice tree. Included once per target.
#if defined(SHOAL_LINEAR_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_LINEAR_LANES_INL_H_
#undef SHOAL_LINEAR_LANES_INL_H_
#else
#define SHOAL_LINEAR_LANES_INL_H_
#endif

#include <cmath>
#include <cstring>

#include "compute/kernels/linear_job.h"
#include "compute/kernels/pack.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kPanelRows>;
using DI = hn::RebindToSigned<DF>;
using DU8 = hn::Repartition<uint8_t, DF>;
using DI8 = hn::Repartition<int8_t, DF>;
using DI16 = hn::Repartition<int16_t, DF>;
using DU16 = hn::Repartition<uint16_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU8 = hn::Vec<DU8>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
inline constexpr int kParts = kPanelRows / kLanes;  // vectors of a panel

HWY_INLINE VF Fma(VF a, VF b, VF c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  const DF df;
  HWY_ALIGN float x[kLanes], y[kLanes], z[kLanes];
  hn::Store(a, df, x);
  hn::Store(b, df, y);
  hn::Store(c, df, z);
  for (int i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(df, z);
#endif
}

// f16 at p to f32.
HWY_INLINE VF LoadHalf(const uint8_t* p) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}

// Small integers at p to f32.
template <bool kSigned>
HWY_INLINE VF LoadSmall(const uint8_t* p) {
  if constexpr (kSigned) {
    return hn::ConvertTo(DF(),
                         hn::PromoteTo(DI(), hn::LoadU(hn::Rebind<int8_t, DF>(), reinterpret_cast<const int8_t*>(p))));
  } else {
    return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(hn::Rebind<uint8_t, DF>(), p)));
  }
}

// Panels are streamed in memory order. One row or two pass as fast as memory brings the weights: the processor's own prefetching
// keeps up with that, and asking far ahead costs a quarter of the rate. Where more rows share each load it falls behind: then
// to the second-level cache far ahead, to the first nearer. (Zen 4; `bench/run kernels` shows it.)
template <int kRows>
HWY_INLINE void PrefetchWeights(const uint8_t* p) {
  __builtin_prefetch(p + (kRows <= 2 ? 1024 : 12288), 0, 2);
  __builtin_prefetch(p + (kRows <= 2 ? 256 : 3072), 0, 3);
}

// What comes next of kRows prepared rows: side by side in one group, or (kGather) each somewhere. Unit: Piece or float.
template <class Unit, int kRows, bool kGather>
struct NextUnits {
  static constexpr int kPointers = kGather ? kRows : 1;
  const std::byte* at[kPointers];

  HWY_INLINE NextUnits(const MultiplyJob& job, int64_t first) {
    HWY_UNROLL(16)
    for (int r = 0; r < kPointers; ++r) at[r] = job.prepared + job.shape.Offset(job.RowOf(first + r));
  }
  HWY_INLINE const Unit* Of(int row) const {
    if constexpr (kGather) {
      return reinterpret_cast<const Unit*>(at[row]);
    } else {
      return reinterpret_cast<const Unit*>(at[0]) + row;
    }
  }
  HWY_INLINE void Advance(size_t stride) {
    HWY_UNROLL(16)
    for (int r = 0; r < kPointers; ++r) at[r] += stride;
  }
};

// The end of a slice for kRows x 16 sums: adds what waits to its left, then keeps the sum waiting or writes it out.
template <int kRows>
struct SliceSums {
  HWY_ALIGN float waiting[kMostWaiting][kRows][kPanelRows];
  int depth = 0;

  HWY_INLINE void Finish(const MultiplyJob& job, const SliceStep& step, int64_t panel, int64_t first,
                         VF (&sums)[kRows][kParts]) {
    const DF df;
    for (int m = 0; m < step.merges; ++m) {
      --depth;
      HWY_UNROLL(16)
      for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (int h = 0; h < kParts; ++h) sums[r][h] = hn::Add(hn::Load(df, waiting[depth][r] + h * kLanes), sums[r][h]);
      }
    }
    if (step.output < 0) {
      HWY_UNROLL(16)
      for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (int h = 0; h < kParts; ++h) hn::Store(sums[r][h], df, waiting[depth][r] + h * kLanes);
      }
      ++depth;
      return;
    }
    float* out =
        job.out + static_cast<size_t>(step.output) * job.output_stride + static_cast<size_t>(panel) * kPanelRows;
    const int64_t rows = job.out_rows - panel * kPanelRows;
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      float* to = out + static_cast<size_t>(first + r) * job.row_stride;
      if (HWY_LIKELY(rows >= kPanelRows)) {
        HWY_UNROLL(4)
        for (int h = 0; h < kParts; ++h) hn::StoreU(sums[r][h], df, to + h * kLanes);
      } else {
        HWY_UNROLL(4)
        for (int h = 0; h < kParts; ++h) hn::Store(sums[r][h], df, waiting[0][r] + h * kLanes);
        std::memcpy(to, waiting[0][r], static_cast<size_t>(rows) * sizeof(float));
      }
    }
  }
};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear
HWY_AFTER_NAMESPACE();

#endif
