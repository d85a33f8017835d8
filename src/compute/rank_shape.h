// What: what one rank holds of a model: which heads, FFN columns, vocabulary rows. The one place that turns a run of virtual
// slices into ranges.
// Threads: pure.
// Reads next: core/slices.h.
#pragma once

#include <vector>

#include "comm/collective.h"
#include "compute/kernels/linear.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"

namespace shoal {

inline constexpr int64_t kFfnBlock = 32;  // columns of an FFN unit

struct LayerShape {
  UnitRange heads;     // query heads held
  UnitRange kv_heads;  // KV heads that they read; two ranks may hold the same one
  UnitRange own_kv;    // those KV heads that no earlier rank holds: every one belongs to exactly one rank
  UnitRange columns;   // columns of the dense FFN or of every expert
  UnitRange shared;    // columns of the shared expert
  int group = 1;       // query heads per KV head
};

LayerShape ShapeOf(const ModelSpec& spec, const LayerSpec& layer, SliceRun run);

// Layouts of the row-parallel matrices' K.
kernels::KLayout HeadsLayout(const ModelSpec& spec, const LayerSpec& layer, SliceRun run);
kernels::KLayout FfnLayout(int64_t width, SliceRun run);
// The same with every slice a sum of its own: experts are added within each slice before slices are.
kernels::KLayout SplitSlices(kernels::KLayout layout);

// Which sums each rank brings.
ReduceShares SharesOf(const ShardPlan& plan, int64_t units);

inline int64_t FfnUnits(int64_t width) { return (width + kFfnBlock - 1) / kFfnBlock; }

}  // namespace shoal
