// What: what a rank holds of the model, whatever a step brings: packed weights, the KV pool, how each layer is split over the
// ranks, and the ends of the meetings. Passes over rows (compute/forward.h) read it; several may share it, as their rows share
// the KV pool.
// Owns: weights, the KV pool's memory. Borrows the collectives.
// Threads: constant after construction but for the KV pool, whose blocks belong to the rows that a step gave them to.
// Fails: std::bad_alloc.
// Reads next: compute/weights.h, compute/rank_shape.h, compute/kernels/attention.h.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/collective.h"
#include "compute/aligned_buffer.h"
#include "compute/executor.h"
#include "compute/kernels/attention.h"
#include "compute/weights.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"

namespace shoal {

struct LayerPlan {
  const LayerSpec* spec = nullptr;
  const LayerWeights* weights = nullptr;
  kernels::KvLayer kv;
  kernels::AttentionShape attention;
  ReduceShares attention_shares, ffn_shares, shared_shares;
  kernels::KLayout attention_layout, ffn_layout, shared_layout;
  bool last = false;  // of the model
  // Parallel layers without a norm of the FFN's own: it reads what the attention read.
  bool shares_input = false;
};

struct Shard {
  // `spec` and `collective` outlive it.
  Shard(const ModelSpec& model, ShardWeights held, const ShardPlan& shares, Collective& stage,
        const ExecutorOptions& options);
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const ModelSpec& spec;
  const ShardWeights weights;
  const ShardPlan plan;
  Collective& collective;
  const int rank;
  const Pipeline pipeline;
  const size_t meeting_bytes;
  std::vector<LayerPlan> layers;
  AlignedBuffer kv;
  size_t kv_bytes = 0;

 private:
  void PlanLayers();
  void ReserveKv();
};

}  // namespace shoal
