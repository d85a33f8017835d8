#include "compute/shard.h"

#include <algorithm>
#include <utility>

#include "compute/rank_shape.h"

namespace shoal {
namespace {

size_t Size(int64_t n) { return static_cast<size_t>(n); }

}  // namespace

Shard::Shard(const ModelSpec& model, ShardWeights held, const ShardPlan& shares, Collective& stage,
             const ExecutorOptions& options)
    : spec(model),
      weights(std::move(held)),
      plan(shares),
      collective(stage),
      rank(stage.rank()),
      pipeline(options.pipeline),
      meeting_bytes(options.meeting_bytes) {
  PlanLayers();
  ReserveKv();
}

void Shard::PlanLayers() {
  const RankShare& share = plan.ranks[Size(rank)];
  const SliceRun run = share.slices;
  const size_t first = Size(share.first_layer);
  layers.resize(weights.layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    auto& layer = layers[i];
    layer.spec = &spec.layers[first + i];
    layer.weights = &weights.layers[i];
    layer.last = first + i + 1 == spec.layers.size();
    layer.shares_input = spec.parallel && !layer.weights->ffn_norm.present();
    const auto& shape = layer.weights->shape;
    layer.attention.heads = static_cast<int>(shape.heads.count());
    layer.attention.first_head = static_cast<int>(shape.heads.first);
    layer.attention.first_kv_head = static_cast<int>(shape.kv_heads.first);
    layer.attention.group = shape.group;
    layer.attention.scale = spec.scaled_query ? 1 : spec.attention_scale;
    layer.attention.softcap = spec.attention_softcap;
    layer.attention.window = layer.spec->window;
    layer.attention_shares = SharesOf(plan, layer.spec->heads);
    layer.attention_layout = HeadsLayout(spec, *layer.spec, run);
    const int64_t width = layer.spec->experts ? spec.n_ff_expert : layer.spec->n_ff;
    layer.ffn_shares = SharesOf(plan, FfnUnits(width));
    layer.ffn_layout = FfnLayout(width, run);
    layer.shared_shares = SharesOf(plan, FfnUnits(spec.n_ff_shared));
    layer.shared_layout = FfnLayout(spec.n_ff_shared, run);
  }
}

void Shard::ReserveKv() {
  kv_bytes = KvBlockBytes(spec, plan.ranks[Size(rank)], plan.kv_type) * Size(plan.kv_blocks);
  kv.Reserve(std::max<size_t>(kv_bytes, 64));
  std::byte* at = kv.bytes();
  for (auto& layer : layers) {
    auto& pool = layer.kv;
    pool.type = plan.kv_type;
    pool.kv_heads = static_cast<int>(layer.weights->shape.kv_heads.count());
    pool.k_dim = spec.head_dim_k;
    pool.v_dim = spec.head_dim_v;
    const size_t cells = Size(plan.kv_blocks) * Size(pool.kv_heads);
    pool.k = at;
    at += cells * kernels::CellBytes(pool.type, pool.k_dim);
    pool.v = at;
    at += cells * kernels::CellBytes(pool.type, pool.v_dim);
  }
}

}  // namespace shoal
