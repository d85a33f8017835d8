// What: activations to int8, symmetric per 32 values: scale = largest magnitude / 127, q = x * (127 / largest) rounded to the
// nearest even; a block with a NaN or an infinity gets a NaN scale, one that is all but zero gets zeros.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/kernels/linear_quantise.cc"
#include "compute/kernels/linear_targets.h"
//
#include <limits>

#include "hwy/foreach_target.h"
//
#include "compute/kernels/linear_lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

// Vectors of 32 columns here, of any width: the largest magnitude, rounding and integer sums do not depend on order.
void QuantiseTarget(const QuantiseJob& job) {
  const DF df;
  const DI di;
  const hn::Rebind<int8_t, DF> d8;
  constexpr int kVectors = static_cast<int>(kBlock) / kLanes;
  for (int64_t b = 0; b < job.blocks; ++b) {
    const float* x = job.x + b * kBlock;
    auto& piece = *reinterpret_cast<Piece*>(job.out + static_cast<size_t>(b) * job.stride);
    VF v[kVectors];
    VI most = hn::Zero(di);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      v[i] = hn::LoadU(df, x + i * kLanes);
      most = hn::Max(most, hn::BitCast(di, hn::Abs(v[i])));  // as integers, so that a NaN is the largest
    }
    const int32_t bits = hn::ReduceMax(di, most);
    const float largest = hwy::BitCastScalar<float>(bits);
    float scale = 0;
    float inverse = 0;
    if (bits >= 0x7f800000) {
      scale = std::numeric_limits<float>::quiet_NaN();  // shows in every output
    } else if (largest > 1e-30f) {                      // below, the inverse would overflow
      scale = largest / 127.0f;
      inverse = 127.0f / largest;
    }
    const VF by = hn::Set(df, inverse);
    VI sum[2] = {hn::Zero(di), hn::Zero(di)};
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      const VI q = inverse == 0 ? hn::Zero(di) : hn::NearestInt(hn::Mul(v[i], by));
      sum[i / (kVectors / 2)] = hn::Add(sum[i / (kVectors / 2)], q);
      hn::StoreU(hn::DemoteTo(d8, q), d8, piece.q + i * kLanes);
    }
    const int32_t first = hn::ReduceSum(di, sum[0]);
    const int32_t second = hn::ReduceSum(di, sum[1]);
    piece.scale = scale;
    piece.minus8 = -8 * (first + second);
    piece.minus128 = -128 * (first + second);
    piece.scaled_sum = scale * static_cast<float>(first + second);
    piece.minus32[0] = -32 * first;
    piece.minus32[1] = -32 * second;
  }
}

const char* NameTarget() { return hwy::TargetName(HWY_TARGET); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::linear {

HWY_EXPORT(QuantiseTarget);
HWY_EXPORT(NameTarget);
void Quantise(const QuantiseJob& job) { HWY_DYNAMIC_DISPATCH(QuantiseTarget)(job); }
const char* NameOfTarget() { return HWY_DYNAMIC_DISPATCH(NameTarget)(); }
int64_t UsableTargets() {
  // The portable fallback only where there is nothing else: attention and norms would not follow it.
  const int64_t all = hwy::SupportedTargets() & HWY_TARGETS, real = all & ~int64_t{HWY_EMU128 | HWY_SCALAR};
  return real != 0 ? real : all;
}

}  // namespace shoal::kernels::linear
#endif
