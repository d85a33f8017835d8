// What: products with the types whose scales stand in super-blocks of 256.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/kernels/linear_int8_supers.cc"
#include "compute/kernels/linear_targets.h"
//
#include "hwy/foreach_target.h"
//
#include "compute/kernels/linear_int8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

void MultiplySupersTarget(const MultiplyJob& job) {
  switch (job.type) {
    case WeightType::kQ2_K:
      return Int8Panels<FormatOf(WeightType::kQ2_K)>(job);
    case WeightType::kQ3_K:
      return Int8Panels<FormatOf(WeightType::kQ3_K)>(job);
    case WeightType::kQ4_K:
      return Int8Panels<FormatOf(WeightType::kQ4_K)>(job);
    case WeightType::kQ5_K:
      return Int8Panels<FormatOf(WeightType::kQ5_K)>(job);
    case WeightType::kQ6_K:
      return Int8Panels<FormatOf(WeightType::kQ6_K)>(job);
    case WeightType::kIQ4_XS:
      return Int8Panels<FormatOf(WeightType::kIQ4_XS)>(job);
    default:
      HWY_ABORT("not a type of this family");
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::linear {

HWY_EXPORT(MultiplySupersTarget);
void MultiplySupers(const MultiplyJob& job) { HWY_DYNAMIC_DISPATCH(MultiplySupersTarget)(job); }

}  // namespace shoal::kernels::linear
#endif
