// What: products with the types whose scales stand in each block of 32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/kernels/linear_int8_blocks.cc"
#include "compute/kernels/linear_targets.h"
//
#include "hwy/foreach_target.h"
//
#include "compute/kernels/linear_int8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear {
namespace HWY_NAMESPACE {

void MultiplyBlocksTarget(const MultiplyJob& job) {
  switch (job.type) {
    case WeightType::kQ4_0:
      return Int8Panels<FormatOf(WeightType::kQ4_0)>(job);
    case WeightType::kQ4_1:
      return Int8Panels<FormatOf(WeightType::kQ4_1)>(job);
    case WeightType::kQ5_0:
      return Int8Panels<FormatOf(WeightType::kQ5_0)>(job);
    case WeightType::kQ5_1:
      return Int8Panels<FormatOf(WeightType::kQ5_1)>(job);
    case WeightType::kQ8_0:
      return Int8Panels<FormatOf(WeightType::kQ8_0)>(job);
    case WeightType::kIQ4_NL:
      return Int8Panels<FormatOf(WeightType::kIQ4_NL)>(job);
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

HWY_EXPORT(MultiplyBlocksTarget);
void MultiplyBlocks(const MultiplyJob& job) { HWY_DYNAMIC_DISPATCH(MultiplyBlocksTarget)(job); }

}  // namespace shoal::kernels::linear
#endif
