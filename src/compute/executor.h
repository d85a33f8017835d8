// What: the shard of one rank: its packed weights, its KV cache, and the forward pass over a batch of rows. This one computes
// with our kernels on the CPU; row-parallel sums meet the other ranks in Collective.
// Owns: weights, KV store, compute threads, and a thread that meets the other ranks in steps that overlap (comm/courier.h).
// Threads: one thread calls Forward at a time.
// Limits: kMaxStepRows rows a call.
// Fails: collective errors; kOutOfMemory at load. A step that was to overlap and fails, whatever the reason, has closed its
// collectives.
// Reads next: compute/forward.h, compute/kernels/linear.h, comm/collective.h, core/model_spec.h.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/collective.h"
#include "compute/kernels/attention.h"
#include "compute/program.h"
#include "core/ids.h"
#include "core/limits.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"
#include "model/tensor_source.h"

namespace shoal {

// Rows of a step: tokens[i] belongs to the segment that covers row i.
struct RowBatch {
  std::span<const TokenId> tokens;
  std::span<const kernels::Segment> segments;  // cover all rows, in order
  std::span<const int32_t> logit_rows;         // ascending rows whose logits are wanted; may be empty
  // Compute the rows in parts, one while the sums of others are on their way; the same on every rank, of all stages. Not with
  // one row; a rank that has its layers alone computes them as a whole, and passes them on in parts.
  bool overlap = false;
};

// The stages before and behind this one, where there are any: rows of the residual stream come from one rank of the stage
// before, and go to some of the stage behind.
struct Pipeline {
  Collective* group = nullptr;  // of all ranks; used for Send and Receive alone
  int from = -1;                // -1: this is the first stage, which looks up the tokens' embeddings
  std::vector<int> to = {};     // with `last` false: the ranks that are sent to; may be empty
  bool last = true;             // this is the last stage, which computes the logits
};

struct ExecutorOptions {
  int threads = 1;
  Pipeline pipeline = {};
  size_t meeting_bytes =
      limits::kMaxFrameBytes;  // that one rank brings to a meeting at most, but for one row; less in tests
};

class Executor {
 public:
  // `plan` and `collective` are of the ranks that share this rank's layers: plan.ranks[collective.rank()] is its share,
  // plan.kv_blocks the size of the KV pool.
  static Result<std::unique_ptr<Executor>> Load(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                                Collective& collective, const ExecutorOptions& options);
  virtual ~Executor() = default;

  // Writes the rows' K and V into the cache and returns logits [logit_rows.size(), n_vocab] on rank 0 of the last stage,
  // empty elsewhere. The span is valid until the next call.
  virtual Result<std::span<const float>> Forward(const RowBatch& batch) = 0;

  // The rank's threads, for what is done with the logits; not while Forward runs.
  virtual ThreadPool& threads() = 0;

  // How long the last Forward waited for other ranks instead of computing.
  virtual StepWaits waits() const = 0;
  virtual size_t weight_bytes() const = 0;  // resident, packed
  virtual size_t kv_bytes() const = 0;
};

// KV bytes of one block (kBlockTokens positions, the layers of the share) on the rank with `share`: how the pool is sized.
size_t KvBlockBytes(const ModelSpec& spec, const RankShare& share, KvType type);

// Where a model's bytes will lie, in the form that they are computed with: what is reckoned with before they are loaded.
struct ModelWeights {
  uint64_t embedding = 0;  // the first stage's, beside its layers
  uint64_t positions = 0;  // the same
  uint64_t output = 0;     // the last stage's
  bool tied = false;       // output is the embedding's table: a lone stage holds it once
  double layer = 0;        // of the mean layer
};
ModelWeights ModelWeightsOf(const ModelSpec& spec);
// What no step has to read: the tables that single rows are looked up in, and the experts that one token leaves out.
uint64_t UnreadWeightBytes(const ModelSpec& spec, int stages);
// Of the rank with `share`, by equal layers and slices: what head and worker both reckon its weights by.
uint64_t ShareWeightBytes(const ModelSpec& spec, const RankShare& share);

}  // namespace shoal
