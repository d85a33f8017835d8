// What: products with f32, f16 and bf16 weights: f32 activations, one fused multiply-add per column, even and odd columns of a
// slice in two sums that are added at its end.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/kernels/linear_float.cc"
#include "compute/kernels/linear_targets.h"
//
#include "hwy/foreach_target.h"
//
#include "compute/kernels/linear_lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

template <WeightType kType>
inline constexpr size_t kWeightBytes = kType == WeightType::kF32 ? 4 : 2;

template <WeightType kType>
HWY_INLINE VF LoadWeights(const uint8_t* p) {
  if constexpr (kType == WeightType::kF32) {
    return hn::LoadU(DF(), reinterpret_cast<const float*>(p));
  } else if constexpr (kType == WeightType::kF16) {
    return LoadHalf(p);
  } else {
    const hn::RebindToUnsigned<DF> du32;
    const auto bits = hn::LoadU(hn::Rebind<uint16_t, DF>(), reinterpret_cast<const uint16_t*>(p));
    return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
  }
}

template <WeightType kType, int kRows, bool kGather>
HWY_NOINLINE void FloatRows(const MultiplyJob& job, int64_t panel, int64_t first) {
  const DF df;
  constexpr size_t kColumn = kPanelRows * kWeightBytes<kType>;
  const auto* weights = reinterpret_cast<const uint8_t*>(job.panels) + static_cast<size_t>(panel) * job.panel_bytes;
  NextUnits<float, kRows, kGather> x(job, first);
  const size_t stride = job.shape.unit_stride;
  SliceSums<kRows> waiting;
  for (int s = 0; s < job.step_count; ++s) {
    const SliceStep& step = job.steps[s];
    VF sums[2][kRows][kParts];
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int h = 0; h < kParts; ++h) sums[0][r][h] = sums[1][r][h] = hn::Zero(df);
    }
    const auto column = [&](VF(&to)[kRows][kParts]) HWY_ATTR {
      HWY_UNROLL(4)
      for (int h = 0; h < kParts; ++h) {
        const VF w = LoadWeights<kType>(weights + static_cast<size_t>(h * kLanes) * kWeightBytes<kType>);
        HWY_UNROLL(16)
        for (int r = 0; r < kRows; ++r) to[r][h] = Fma(w, hn::Set(df, *x.Of(r)), to[r][h]);
      }
      weights += kColumn;
      x.Advance(stride);
    };
    int64_t left = step.end - step.begin;
    for (; left >= 2; left -= 2) {
      PrefetchWeights<kRows>(weights);
      if constexpr (kColumn == 64) PrefetchWeights<kRows>(weights + 64);
      column(sums[0]);
      column(sums[1]);
    }
    if (left != 0) column(sums[0]);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int h = 0; h < kParts; ++h) sums[0][r][h] = hn::Add(sums[0][r][h], sums[1][r][h]);
    }
    waiting.Finish(job, step, panel, first, sums[0]);
  }
}

// As many rows at a time as the registers hold: two sums of kParts vectors a row. They divide the rows of a group.
inline constexpr int kMostRows = HWY_TARGET == HWY_EMU128 ? 1 : kParts == 1 ? 12 : kParts == 2 ? 3 : 2;
static_assert(kFloatGroupRows % kMostRows == 0);

template <WeightType kType>
void FloatPanels(const MultiplyJob& job) {
  constexpr int kGathered = kMostRows < 4 ? kMostRows : 4;
  for (int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
    int64_t i = 0;
    if (job.which != nullptr) {
      for (; job.n - i >= kGathered; i += kGathered) FloatRows<kType, kGathered, true>(job, panel, i);
    } else {
      for (; job.n - i >= kMostRows; i += kMostRows) FloatRows<kType, kMostRows, false>(job, panel, i);
      if constexpr (kMostRows == 12) {
        if (job.n - i >= 8) FloatRows<kType, 8, false>(job, panel, i), i += 8;
        if (job.n - i >= 4) FloatRows<kType, 4, false>(job, panel, i), i += 4;
        if (job.n - i >= 2) FloatRows<kType, 2, false>(job, panel, i), i += 2;
      }
    }
    for (; i < job.n; ++i) FloatRows<kType, 1, false>(job, panel, i);
  }
}

void MultiplyFloatTarget(const MultiplyJob& job) {
  switch (job.type) {
    case WeightType::kF32:
      return FloatPanels<WeightType::kF32>(job);
    case WeightType::kF16:
      return FloatPanels<WeightType::kF16>(job);
    default:
      return FloatPanels<WeightType::kBF16>(job);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::linear {

HWY_EXPORT(MultiplyFloatTarget);
void MultiplyFloat(const MultiplyJob& job) { HWY_DYNAMIC_DISPATCH(MultiplyFloatTarget)(job); }

}  // namespace shoal::kernels::linear
#endif
