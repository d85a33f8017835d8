// What: a pass of rows through the layers of one rank, as two Programs (one for a single row, one for any number) over one set
// of buffers. What a step brings (tokens, positions, segments, how many rows) is read from here when it runs, so that
// no step makes anything. A step is one pass, or several over the same shard that run in turns: the first rows' keys and values
// are in the KV pool when later rows come to the same layer.
// Owns: the buffers, the programs. Borrows the shard and the threads.
// Threads: one thread calls it at a time; a meeting may run on another (Program::RunInTurns), beside no other use of this pass.
// Limits: kMaxStepRows rows.
// Fails: the first error of a meeting.
// Reads next: compute/shard.h, compute/program.h, compute/experts.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "comm/collective.h"
#include "compute/aligned_buffer.h"
#include "compute/executor.h"
#include "compute/program.h"
#include "compute/rope.h"
#include "compute/shard.h"
#include "compute/weights.h"
#include "core/model_spec.h"

namespace shoal {

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
  int64_t attended = 0;        // positions that they see, all together
};

// What an element costs, in multiplications of a product (Program::Add): about 0.4 ns, 0.4 ns and 0.2 ns against 0.025 ns; for
// attention a dimension of a position that a query head sees.
inline constexpr int64_t kQuantiseWork = 16, kActivateWork = 16, kNormWork = 8, kAttendWork = 2;

class Forward {
 public:
  Forward(const Shard& shard, ThreadPool& pool);
  ~Forward();

  // Takes the rows, which stay where they are until the program has run.
  void Begin(const RowBatch& batch);
  // For the rows that were taken. The one for any number has the same meetings as the one for a single row.
  Program& program() { return step_.rows == 1 ? one_row_ : many_rows_; }
  int rows() const { return step_.rows; }
  // Logits of this rank's vocabulary rows, [logit rows, vocabulary rows held], once the program has run.
  std::span<const float> logits() const;

 private:
  // Table rows of a step from all ranks, as they lie in the file; place[row] is where a row's bytes are.
  struct GatheredRows {
    AlignedBuffer bytes;
    std::vector<size_t> place;
  };
  class Experts;

  void Reserve(int rows, int logit_rows);

  // What a Program is made of. `row` says how work over rows is shared: by one thread when there is one row.
  void Build(Program& program, Workers row);
  void AddEmbedding(Program& program, Workers row);
  void AddReceive(Program& program, Workers row);
  void AddSend(Program& program);
  void AddAttention(Program& program, Workers row, const LayerPlan& layer);
  void AddGatedFfn(Program& program, Workers row, const LinearWeights& gate, const LinearWeights& up,
                   const LinearWeights& down, const kernels::KLayout& layout, const ReduceShares& shares,
                   AlignedBuffer& out);
  void AddFfn(Program& program, Workers row, const LayerPlan& layer);
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
  Status PassRows(bool receive, int first, int count);
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
  const ShardWeights& weights_;
  const ShardPlan& plan_;
  Collective& collective_;
  const int rank_;
  const Pipeline& pipeline_;
  const size_t meeting_bytes_;
  const std::vector<LayerPlan>& layers_;
  RopeTable rope_, local_rope_;
  StepFailure failure_;
  StepState step_;

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

  Program one_row_, many_rows_;
};

}  // namespace shoal
