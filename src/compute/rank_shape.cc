#include "compute/rank_shape.h"

#include <algorithm>

#include "base/checked.h"
#include "compute/executor.h"
#include "compute/kernels/attention.h"
#include "compute/kernels/linear.h"

namespace shoal {
namespace {

UnitRange FfnColumns(int64_t width, SliceRun run) {
  const auto blocks = UnitsOf(run, FfnUnits(width));
  return {std::min(width, blocks.first * kFfnBlock), std::min(width, blocks.last * kFfnBlock)};
}

}  // namespace

LayerShape ShapeOf(const ModelSpec& spec, const LayerSpec& layer, SliceRun run) {
  LayerShape shape;
  shape.group = layer.heads / layer.kv_heads;
  shape.heads = UnitsOf(run, layer.heads);
  const int64_t group = shape.group;
  if (shape.heads.count() > 0) shape.kv_heads = {shape.heads.first / group, CeilDiv(shape.heads.last, group)};
  shape.own_kv = {CeilDiv(shape.heads.first, group), CeilDiv(shape.heads.last, group)};
  shape.columns = FfnColumns(layer.experts ? spec.n_ff_expert : layer.n_ff, run);
  if (layer.experts) shape.shared = FfnColumns(spec.n_ff_shared, run);
  return shape;
}

kernels::KLayout HeadsLayout(const ModelSpec& spec, const LayerSpec& layer, SliceRun run) {
  return kernels::KLayout::Sliced(run, layer.heads, spec.head_dim_v, int64_t{layer.heads} * spec.head_dim_v);
}

kernels::KLayout FfnLayout(int64_t width, SliceRun run) {
  return kernels::KLayout::Sliced(run, FfnUnits(width), kFfnBlock, width);
}

kernels::KLayout SplitSlices(kernels::KLayout layout) {
  layout.subtrees.clear();
  for (auto& slice : layout.slices) {
    slice.subtree = static_cast<int>(layout.subtrees.size());
    layout.subtrees.push_back({slice.index, 1});
  }
  return layout;
}

ReduceShares SharesOf(const ShardPlan& plan, int64_t units) {
  ReduceShares shares;
  for (const auto& rank : plan.ranks) shares.subtrees.push_back(MaximalSubtrees(rank.slices, units));
  return shares;
}

size_t KvBlockBytes(const ModelSpec& spec, const RankShare& share, KvType type) {
  const size_t cells = kernels::CellBytes(type, spec.head_dim_k) + kernels::CellBytes(type, spec.head_dim_v);
  size_t bytes = 0;
  for (int i = share.first_layer; i < share.last_layer; ++i) {
    const auto& layer = spec.layers[static_cast<size_t>(i)];
    bytes += static_cast<size_t>(ShapeOf(spec, layer, share.slices).kv_heads.count()) * cells;
  }
  return bytes;
}

namespace {

uint64_t FileBytes(const TensorRef& tensor) {
  return tensor ? tensor.row_bytes * static_cast<uint64_t>(tensor.rows) * static_cast<uint64_t>(tensor.matrices) : 0;
}

uint64_t PackedBytes(const TensorRef& tensor) {
  const double ratio = kernels::PackedRatio(static_cast<kernels::WeightType>(tensor.type));
  return static_cast<uint64_t>(static_cast<double>(FileBytes(tensor)) * ratio);
}

uint64_t PackedExperts(const LayerSpec& layer) {
  return PackedBytes(layer.gate_experts) + PackedBytes(layer.up_experts) + PackedBytes(layer.down_experts);
}

// What packing adds to a layer's matrices; takes away, where it is less than 0.
double AddedByPacking(const LayerSpec& layer) {
  double added = 0;
  for (const TensorRef* matrix :
       {&layer.q.weight, &layer.k.weight, &layer.v.weight, &layer.o.weight, &layer.gate.weight, &layer.up.weight,
        &layer.down.weight, &layer.shared_gate.weight, &layer.shared_up.weight, &layer.shared_down.weight,
        &layer.router, &layer.gate_experts, &layer.up_experts, &layer.down_experts})
    added += static_cast<double>(PackedBytes(*matrix)) - static_cast<double>(FileBytes(*matrix));
  return added;
}

}  // namespace

ModelWeights ModelWeightsOf(const ModelSpec& spec) {
  ModelWeights weights{.embedding = FileBytes(spec.embedding),
                       .positions = FileBytes(spec.positions),
                       .output = PackedBytes(spec.output.weight),
                       .tied = spec.output.weight.tensor == spec.embedding.tensor};
  const uint64_t ends = weights.embedding + weights.positions + (weights.tied ? 0 : FileBytes(spec.output.weight));
  double layers = static_cast<double>(spec.tensor_bytes - std::min(ends, spec.tensor_bytes));
  for (const LayerSpec& layer : spec.layers) layers += AddedByPacking(layer);
  weights.layer = layers / spec.n_layers;
  return weights;
}

uint64_t UnreadWeightBytes(const ModelSpec& spec, int stages) {
  const ModelWeights weights = ModelWeightsOf(spec);
  uint64_t bytes = weights.positions + (weights.tied && stages == 1 ? 0 : weights.embedding);
  if (!spec.mixture()) return bytes;
  for (const LayerSpec& layer : spec.layers)
    bytes += PackedExperts(layer) / static_cast<uint64_t>(spec.n_experts) *
             static_cast<uint64_t>(spec.n_experts - spec.n_experts_used);
  return bytes;
}

uint64_t ShareWeightBytes(const ModelSpec& spec, const RankShare& share) {
  const ModelWeights weights = ModelWeightsOf(spec);
  const bool first = share.first_layer == 0, last = share.last_layer == spec.n_layers;
  double bytes = weights.layer * (share.last_layer - share.first_layer);
  if (first) bytes += static_cast<double>(weights.positions);
  if (first && !(last && weights.tied)) bytes += static_cast<double>(weights.embedding);
  if (last) bytes += static_cast<double>(weights.output);
  return static_cast<uint64_t>(bytes / kSlices * share.slices.size());
}

}  // namespace shoal
