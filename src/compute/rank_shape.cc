#include "compute/rank_shape.h"

#include <algorithm>

#include "base/checked.h"
#include "compute/executor.h"
#include "compute/kernels/attention.h"

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

}  // namespace

FileWeights FileWeightsOf(const ModelSpec& spec) {
  FileWeights weights{.begin = FileBytes(spec.embedding) + FileBytes(spec.positions),
                      .end = FileBytes(spec.output.weight)};
  weights.tied = spec.output.weight.tensor == spec.embedding.tensor;
  const uint64_t ends = weights.begin + (weights.tied ? 0 : weights.end);
  weights.layer = static_cast<double>(spec.tensor_bytes - std::min(ends, spec.tensor_bytes)) / spec.n_layers;
  return weights;
}

uint64_t FileBytesUnread(const ModelSpec& spec) {
  const FileWeights ends = FileWeightsOf(spec);
  uint64_t bytes = ends.tied ? FileBytes(spec.positions) : ends.begin;
  if (!spec.mixture()) return bytes;
  for (const LayerSpec& layer : spec.layers)
    for (const TensorRef* experts : {&layer.gate_experts, &layer.up_experts, &layer.down_experts})
      bytes += FileBytes(*experts) / static_cast<uint64_t>(spec.n_experts) *
               static_cast<uint64_t>(spec.n_experts - spec.n_experts_used);
  return bytes;
}

uint64_t FileWeightBytes(const ModelSpec& spec, const RankShare& share) {
  const FileWeights weights = FileWeightsOf(spec);
  const bool first = share.first_layer == 0, last = share.last_layer == spec.n_layers;
  double bytes = weights.layer * (share.last_layer - share.first_layer);
  if (first) bytes += static_cast<double>(weights.begin);
  if (last && !(first && weights.tied)) bytes += static_cast<double>(weights.end);
  return static_cast<uint64_t>(bytes / kSlices * share.slices.size());
}

}  // namespace shoal
