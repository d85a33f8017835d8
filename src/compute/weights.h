// What: the weights of one rank: read from a TensorSource (exactly the bytes of its slices), packed, kept.
// Owns: all of it.
// Threads: immutable after loading.
// Fails: what the source fails with; kOutOfMemory; kUnsupportedType.
// Reads next: compute/rank_shape.h, compute/kernels/linear.h.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "base/result.h"
#include "compute/kernels/linear.h"
#include "compute/rank_shape.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"
#include "model/tensor_source.h"

namespace shoal {

// A matrix, or the rank's part of one. Absent (no rows or no columns here) on ranks without a share.
struct LinearWeights {
  std::optional<kernels::PackedMatrix> matrix;
  std::vector<float> bias;  // of the rows held; empty: none
};

struct NormWeights {
  std::vector<float> weight;
  std::vector<float> bias;
  bool present() const { return !weight.empty(); }
  const float* weight_or_null() const { return weight.empty() ? nullptr : weight.data(); }
  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct ExpertWeights {
  std::optional<kernels::PackedMatrix> gate, up, down;
};

struct LayerWeights {
  LayerShape shape;
  NormWeights attention_norm, attention_post_norm, ffn_norm, ffn_post_norm;
  LinearWeights q, k, v, o;
  std::vector<float> q_norm, k_norm;  // of the heads held
  LinearWeights gate, up, down;       // dense
  LinearWeights router;
  std::vector<ExpertWeights> experts;
  LinearWeights shared_gate, shared_up, shared_down, shared_router;
};

// Rows of a table, to be looked up one by one: as they lie in the file, or out of the packed matrix that holds the same
// weights (tied embeddings are held once).
struct TableWeights {
  TensorRef ref;
  UnitRange rows;                // held here
  std::vector<std::byte> bytes;  // theirs; none when packed
  bool packed = false;           // ShardWeights::output holds them
  // A row as it travels between ranks: the file's bytes, or floats.
  size_t row_bytes() const { return packed ? static_cast<size_t>(ref.columns) * sizeof(float) : ref.row_bytes; }
};

struct ShardWeights {
  TableWeights embedding;
  TableWeights positions;
  NormWeights embedding_norm, final_norm;
  LinearWeights output;  // vocabulary rows held
  UnitRange vocabulary;
  std::vector<float> rope_factors;
  std::vector<LayerWeights> layers;  // of the share
  size_t bytes = 0;                  // resident
};

// The first stage alone has the embedding, the last one alone the output matrix and the norm before it.
Result<ShardWeights> LoadWeights(const ModelSpec& spec, TensorSource& source, const RankShare& share, int threads);

}  // namespace shoal
