// What: the layers of one rank as two Programs (one for a step of a single row, one for any number) over one set of
// buffers. What a step brings (tokens, positions, segments, how many rows) is read from here when it runs, so that
// no step makes anything.
// Owns: the buffers, the KV pool's memory, the programs.
// Threads: one thread calls Run at a time.
// Limits: kMaxStepRows rows.
// Fails: the first error of a meeting.
// Reads next: compute/program.h, compute/experts.h, compute/rank_shape.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "base/result.h"
#include "comm/collective.h"
#include "compute/executor.h"
#include "compute/kernels/attention.h"
#include "compute/program.h"
#include "compute/rope.h"
#include "compute/weights.h"
#include "core/model_spec.h"

namespace shoal {

// Memory aligned for vectors; not initialised. Reserve throws away what was inside.
class AlignedBuffer {
 public:
  void Reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    data_.reset();
    bytes_ = 0;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    bytes_ = bytes;
  }
  std::byte* bytes() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Delete> data_;
  size_t bytes_ = 0;
};

// Activations as the matrices of one input want them: up to two kinds.
struct PreparedInput {
  AlignedBuffer of[2];
  const std::byte* For(const kernels::PackedMatrix& matrix) const {
    return of[matrix.kind() == kernels::ActivationKind::kF32 ? 0 : 1].bytes();
  }
};

// Which kinds some matrices want.
struct KindSet {
  bool of[2] = {false, false};
  void Add(const std::optional<kernels::PackedMatrix>& matrix) {
    if (matrix) of[matrix->kind() == kernels::ActivationKind::kF32 ? 0 : 1] = true;
  }
};

struct StepState {
  RowBatch batch;
  int rows = 0;                // rows the layers work on; after the last attention only the logit rows
  std::vector<int> positions;  // of the batch's rows
};

class Forward {
 public:
  Forward(const ModelSpec& spec, ShardWeights weights, const ShardPlan& plan, Collective& collective,
          const ExecutorOptions& options);
  ~Forward();

  // Logits of this rank's vocabulary rows, [logit rows, vocabulary rows held].
  Result<std::span<float>> Run(const RowBatch& batch);

  Nanos waited() const { return waited_; }
  size_t weight_bytes() const { return weights_.bytes; }
  size_t kv_bytes() const { return kv_bytes_; }

 private:
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
  // Table rows of a step from all ranks, as they lie in the file; place[row] is where a row's bytes are.
  struct GatheredRows {
    AlignedBuffer bytes;
    std::vector<size_t> place;
  };
  class Experts;

  void PlanLayers();
  void ReserveKv(int blocks);
  void Reserve(int rows, int logit_rows);

  // What a Program is made of. `row` says how work over rows is shared: by one thread when there is one row.
  void Build(Program& program, Workers row);
  void AddEmbedding(Program& program, Workers row);
  void AddReceive(Program& program, Workers row);
  void AddSend(Program& program);
  void AddAttention(Program& program, Workers row, LayerPlan& layer);
  void AddGatedFfn(Program& program, Workers row, const LinearWeights& gate, const LinearWeights& up,
                   const LinearWeights& down, const kernels::KLayout& layout, const ReduceShares& shares,
                   AlignedBuffer& out);
  void AddFfn(Program& program, Workers row, LayerPlan& layer);
  void AddLogits(Program& program, Workers row);
  void AddNorm(Program& program, Workers row, const NormWeights& norm, const AlignedBuffer& in, AlignedBuffer& out);
  void AddPrepare(Program& program, Workers row, KindSet kinds, const kernels::KLayout& layout, const AlignedBuffer& in,
                  PreparedInput& out);
  // A row-parallel product of one prepared input, summed over the ranks into `out`.
  void AddRowParallel(Program& program, const LinearWeights& weights, const kernels::KLayout& layout,
                      const PreparedInput& in, const ReduceShares& shares, AlignedBuffer& out);
  void AddReduce(Program& program, const ReduceShares& shares, AlignedBuffer& out);
  Status Reduce(const ReduceShares& shares, AlignedBuffer& out);
  void AddResidual(Program& program, Workers row, const NormWeights& post_norm, const std::vector<float>& bias,
                   AlignedBuffer& sum);

  // Bodies of operations.
  Status PassRows(bool receive);
  void FillRope(int ith, int nth);
  void LookUp(const TableWeights& table, const GatheredRows& gathered, bool positions, int ith, int nth);
  Status GatherTable(const TableWeights& table, bool positions, GatheredRows& gathered);
  Status GatherTableRows(const TableWeights& table, bool positions, UnitRange rows, GatheredRows& gathered);
  int64_t TableRow(bool positions, int row) const;
  void SumSquares(const LayerPlan& layer, int ith, int nth);
  void FinishHeads(const LayerPlan& layer, int ith, int nth);
  void NormHeads(const LayerPlan& layer, int row, float* q, float* k);
  float WholeNormFactor(const LayerPlan& layer, int row, bool keys) const;
  void KeepLogitRows(const LayerPlan& layer);

  const ModelSpec& spec_;
  ShardWeights weights_;
  const ShardPlan plan_;
  Collective& collective_;
  const int rank_;
  const Pipeline pipeline_;
  const size_t meeting_bytes_;
  std::vector<LayerPlan> layers_;
  RopeTable rope_, local_rope_;
  StepFailure failure_;
  StepState step_;
  Nanos waited_{};

  AlignedBuffer kv_;
  size_t kv_bytes_ = 0;
  int reserved_rows_ = 0;
  int reserved_logits_ = 0;
  AlignedBuffer x_, h_;                             // [rows, n_embd]: the residual stream, a normalised copy
  AlignedBuffer q_, k_, v_, heads_;                 // [rows, heads held * dim]
  AlignedBuffer partial_;                           // [subtrees held, rows, n_embd]
  AlignedBuffer sum_, attention_sum_, shared_sum_;  // [rows, n_embd]
  AlignedBuffer gate_, up_;                         // [rows, FFN columns held]
  AlignedBuffer shared_gate_;                       // [rows, 1]
  AlignedBuffer logits_;                            // [logit rows, vocabulary rows held]
  GatheredRows gathered_, gathered_positions_;
  AlignedBuffer squares_, all_squares_;  // whole-vector norms: sums of squares by head
  PreparedInput prepared_h_, prepared_heads_, prepared_ffn_;
  std::vector<std::byte> send_;
  AlignedBuffer block_;  // Reduce's: the sums of some rows, where those of all rows do not fit into one meeting
  std::unique_ptr<Experts> experts_;

  ThreadPool pool_;
  Program one_row_, many_rows_;
};

// The part of `count` things that thread ith of nth does.
inline UnitRange PartOf(int64_t count, int ith, int nth) { return {count * ith / nth, count * (ith + 1) / nth}; }

}  // namespace shoal
