// What: which instruction sets the kernels are compiled for. To be included before Highway's headers.
//
// Every target gives the same bits: integer sums are exact, a lane is an output row, and each float step is a fused
// multiply-add. Targets without a hardware one (SSE) would be slower than the portable code is worth keeping apart, so there
// AVX2, AVX-512 and AVX-512 with VNNI serve x86, NEON serves ARM, and the portable target (std::fma) is the fallback.
#pragma once

#define HWY_WANT_AVX3_DL  // VNNI; Highway leaves it out unless asked
#include "hwy/detect_targets.h"

#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSE2 | HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
