#include "compute/forward.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "compute/experts.h"
#include "compute/parts.h"
#include "compute/vector_math.h"
#include "core/limits.h"

namespace shoal {
namespace {

size_t Size(int64_t n) { return static_cast<size_t>(n); }

float* Row(const AlignedBuffer& buffer, int64_t row, int64_t width) { return buffer.floats() + Size(row * width); }

}  // namespace

Forward::Forward(const Shard& shard, ThreadPool& pool)
    : spec_(shard.spec),
      weights_(shard.weights),
      plan_(shard.plan),
      collective_(shard.collective),
      rank_(shard.rank),
      pipeline_(shard.pipeline),
      meeting_bytes_(shard.meeting_bytes),
      layers_(shard.layers),
      rope_(spec_.rope, weights_.rope_factors),
      local_rope_(spec_.local_rope, weights_.rope_factors),
      one_row_(pool, failure_),
      many_rows_(pool, failure_) {
  experts_ = std::make_unique<Experts>(*this);
  Build(one_row_, Workers::kOne);
  Build(many_rows_, Workers::kDealt);
}

Forward::~Forward() = default;

// Buffers grow to twice the most rows seen, at most to a full step's.
void Forward::Reserve(int rows, int logit_rows) {
  if (logit_rows > reserved_logits_) {
    reserved_logits_ = std::min(limits::kMaxStepRows, std::max(logit_rows, 2 * reserved_logits_));
    logits_.Reserve(Size(reserved_logits_) * Size(weights_.vocabulary.count()) * sizeof(float));
  }
  if (rows <= reserved_rows_) return;
  reserved_rows_ = std::min(limits::kMaxStepRows, std::max(rows, 2 * reserved_rows_));
  const int64_t n = reserved_rows_;
  const auto floats = [&](AlignedBuffer& buffer, int64_t each) { buffer.Reserve(Size(n * each) * sizeof(float)); };
  const auto prepared = [&](PreparedInput& input, const kernels::KLayout& layout) {
    // A few rows may need more than many do: their layout is another.
    for (int kind = 0; kind < 2; ++kind) {
      size_t bytes = 0;
      for (int64_t rows_now = 1; rows_now <= n; ++rows_now)
        bytes = std::max(bytes, kernels::PreparedBytes(static_cast<kernels::ActivationKind>(kind), layout, rows_now));
      input.of[kind].Reserve(bytes);
    }
  };
  floats(x_, spec_.n_embd);
  floats(h_, spec_.n_embd);
  floats(sum_, spec_.n_embd);
  floats(shared_sum_, spec_.n_embd);
  floats(shared_gate_, 1);
  prepared(prepared_h_, kernels::KLayout::Whole(spec_.n_embd));
  rope_.Resize(Size(n));
  local_rope_.Resize(Size(n));
  for (const auto& layer : layers_) {
    const auto& shape = layer.weights->shape;
    floats(q_, shape.heads.count() * spec_.head_dim_k);
    floats(k_, shape.kv_heads.count() * spec_.head_dim_k);
    floats(v_, shape.kv_heads.count() * spec_.head_dim_v);
    floats(heads_, shape.heads.count() * spec_.head_dim_v);
    prepared(prepared_heads_, layer.attention_layout);
    int outputs = std::max(layer.attention_layout.outputs(), layer.ffn_layout.outputs());
    if (!layer.spec->experts) {
      floats(gate_, shape.columns.count());
      floats(up_, shape.columns.count());
      prepared(prepared_ffn_, layer.ffn_layout);
    } else if (spec_.n_ff_shared > 0) {
      floats(gate_, shape.shared.count());
      floats(up_, shape.shared.count());
      prepared(prepared_ffn_, layer.shared_layout);
      outputs = std::max(outputs, layer.shared_layout.outputs());
    }
    floats(partial_, int64_t{outputs} * spec_.n_embd);
    if (spec_.qk_norm == QkNorm::kWholeVector) {
      floats(squares_, shape.heads.count() + shape.own_kv.count());
      floats(all_squares_, layer.spec->heads + layer.spec->kv_heads);
    }
  }
  experts_->Reserve(reserved_rows_);
}

void Forward::Begin(const RowBatch& batch) {
  step_.batch = batch;
  step_.rows = static_cast<int>(batch.tokens.size());
  step_.positions.resize(batch.tokens.size());
  step_.attended = 0;
  for (const auto& segment : batch.segments)
    for (int r = 0; r < segment.rows; ++r) {
      step_.positions[Size(segment.first_row + r)] = segment.first_position + r;
      step_.attended += segment.first_position + r + 1;
    }
  Reserve(step_.rows, static_cast<int>(batch.logit_rows.size()));
  failure_.Clear();
}

std::span<const float> Forward::logits() const {
  const size_t logit_rows = pipeline_.last ? step_.batch.logit_rows.size() : 0;
  return std::span(logits_.floats(), logit_rows * Size(weights_.vocabulary.count()));
}

void Forward::Build(Program& program, Workers row) {
  pipeline_.from < 0 ? AddEmbedding(program, row) : AddReceive(program, row);
  for (const auto& layer : layers_) {
    AddAttention(program, row, layer);
    AddFfn(program, row, layer);
  }
  pipeline_.last ? AddLogits(program, row) : AddSend(program);
}

void Forward::AddReceive(Program& program, Workers row) {
  program.AddMeeting(Partners::kStages, [this] { return PassRows(true); });
  if (rope_.kind() != RopeKind::kNone) program.Add(row, [this](int ith, int nth) { FillRope(ith, nth); });
}

void Forward::AddSend(Program& program) {
  program.AddMeeting(Partners::kStages, [this] { return PassRows(false); });
}

// The residual stream's rows lie one after the other in x_: they go out from there and come in there, as many at once as a
// meeting may move. A step in parts passes its rows part by part, in a stage that computes them as a whole too.
Status Forward::PassRows(bool receive) {
  if (!InParts(step_.batch)) return PassRows(receive, 0, step_.rows);
  int first = 0;
  for (const int rows : PartRows(step_.rows)) {
    SHOAL_RETURN_IF_ERROR(PassRows(receive, first, rows));
    first += rows;
  }
  return {};
}

Status Forward::PassRows(bool receive, int first, int count) {
  const size_t row_bytes = Size(spec_.n_embd) * sizeof(float), end = Size(first + count) * row_bytes;
  const size_t at_once = std::max<size_t>(1, meeting_bytes_ / row_bytes) * row_bytes;
  for (size_t at = Size(first) * row_bytes; at < end; at += at_once) {
    const std::span<std::byte> rows(x_.bytes() + at, std::min(at_once, end - at));
    if (receive) {
      SHOAL_RETURN_IF_ERROR(pipeline_.group->Receive(pipeline_.from, rows));
    } else {
      for (const int to : pipeline_.to) SHOAL_RETURN_IF_ERROR(pipeline_.group->Send(to, rows));
    }
  }
  return {};
}

void Forward::AddNorm(Program& program, Workers row, const NormWeights& norm, const AlignedBuffer& in,
                      AlignedBuffer& out) {
  program.Add(
      row,
      [this, &norm, &in, &out](int ith, int nth) {
        const int64_t n = spec_.n_embd;
        const auto part = PartOf(step_.rows, ith, nth);
        for (int64_t r = part.first; r < part.last; ++r)
          vec::Norm(spec_.norm, Row(in, r, n), norm.weight_or_null(), norm.bias_or_null(), spec_.norm_eps, Size(n),
                    Row(out, r, n));
      },
      kNormWork * spec_.n_embd);
}

void Forward::AddPrepare(Program& program, Workers row, KindSet kinds, const kernels::KLayout& layout,
                         const AlignedBuffer& in, PreparedInput& out) {
  for (int kind = 0; kind < 2; ++kind) {
    if (!kinds.of[kind]) continue;
    program.Add(
        row,
        [this, kind, layout, &in, &out](int ith, int nth) {
          kernels::Prepare(static_cast<kernels::ActivationKind>(kind), layout, in.floats(), layout.columns(),
                           step_.rows, out.of[kind].bytes(), ith, nth);
        },
        kQuantiseWork * layout.columns());
  }
}

void Forward::AddReduce(Program& program, const ReduceShares& shares, AlignedBuffer& out) {
  program.AddMeeting(Partners::kStage, [this, &shares, &out] { return Reduce(shares, out); });
}

// One meeting, or, where a rank's sums of all rows are more than a meeting may move, one for each block of rows. An element's
// sum does not depend on what it travels with.
Status Forward::Reduce(const ReduceShares& shares, AlignedBuffer& out) {
  const size_t rows = Size(step_.rows), n = Size(spec_.n_embd);
  const size_t own = shares.subtrees[Size(rank_)].size();
  size_t most = 1;
  for (const auto& trees : shares.subtrees) most = std::max(most, trees.size());
  const size_t at_once = std::max<size_t>(1, meeting_bytes_ / (most * n * sizeof(float)));
  if (rows <= at_once) {
    if (rows == 0) return {};
    return collective_.AllReduce(shares, std::span(partial_.floats(), own * rows * n),
                                 std::span(out.floats(), rows * n));
  }
  block_.Reserve(own * at_once * n * sizeof(float));
  for (size_t begin = 0; begin < rows; begin += at_once) {
    const size_t size = std::min(at_once, rows - begin) * n;
    for (size_t t = 0; t < own; ++t)
      std::memcpy(block_.floats() + t * size, partial_.floats() + (t * rows + begin) * n, size * sizeof(float));
    SHOAL_RETURN_IF_ERROR(collective_.AllReduce(shares, std::span(block_.floats(), own * size),
                                                std::span(out.floats() + begin * n, size)));
  }
  return {};
}

void Forward::AddRowParallel(Program& program, const LinearWeights& weights, const kernels::KLayout& layout,
                             const PreparedInput& in, const ReduceShares& shares, AlignedBuffer& out) {
  const bool alone = plan_.size() == 1;
  SHOAL_CHECK(!alone || layout.outputs() == 1);
  if (weights.matrix) {
    AlignedBuffer& to = alone ? out : partial_;
    program.Add(
        Workers::kDealt,
        [this, &weights, &in, &to](int ith, int nth) {
          const size_t n = Size(spec_.n_embd), rows = Size(step_.rows);
          weights.matrix->Multiply(in.For(*weights.matrix), step_.rows, nullptr, to.floats(), n, rows * n, ith, nth);
        },
        int64_t{spec_.n_embd} * layout.columns());
  }
  if (!alone) AddReduce(program, shares, out);
}

// x += residual_scale * norm(sum + bias).
void Forward::AddResidual(Program& program, Workers row, const NormWeights& post_norm, const std::vector<float>& bias,
                          AlignedBuffer& sum) {
  program.Add(row, [this, &post_norm, &bias, &sum](int ith, int nth) {
    const int64_t n = spec_.n_embd;
    const auto part = PartOf(step_.rows, ith, nth);
    for (int64_t r = part.first; r < part.last; ++r) {
      float* add = Row(sum, r, n);
      if (!bias.empty()) vec::Add(add, bias.data(), Size(n));
      if (post_norm.present())
        vec::Norm(spec_.norm, add, post_norm.weight_or_null(), post_norm.bias_or_null(), spec_.norm_eps, Size(n), add);
      if (spec_.residual_scale == 1) {
        vec::Add(Row(x_, r, n), add, Size(n));
      } else {
        vec::AddScaled(Row(x_, r, n), add, spec_.residual_scale, Size(n));
      }
    }
  });
}

void Forward::AddGatedFfn(Program& program, Workers row, const LinearWeights& gate, const LinearWeights& up,
                          const LinearWeights& down, const kernels::KLayout& layout, const ReduceShares& shares,
                          AlignedBuffer& out) {
  const int64_t columns = layout.columns();
  if (columns > 0) {
    program.Add(
        Workers::kDealt,
        [this, columns, &gate, &up](int ith, int nth) {
          const auto multiply = [&](const LinearWeights& w, AlignedBuffer& to) {
            if (w.matrix)
              w.matrix->Multiply(prepared_h_.For(*w.matrix), step_.rows, nullptr, to.floats(), Size(columns), 0, ith,
                                 nth);
          };
          multiply(gate, gate_);
          multiply(up, up_);
        },
        2 * columns * spec_.n_embd);
    program.Add(
        row,
        [this, columns, &gate, &up](int ith, int nth) {
          const auto part = PartOf(step_.rows, ith, nth);
          for (int64_t r = part.first; r < part.last; ++r) {
            float* g = Row(gate_, r, columns);
            float* u = Row(up_, r, columns);
            if (!gate.bias.empty()) vec::Add(g, gate.bias.data(), Size(columns));
            if (!up.bias.empty()) vec::Add(u, up.bias.data(), Size(columns));
            // Without a gate the activation is applied to `up` itself.
            gate.matrix ? vec::Activate(spec_.activation, g, u, Size(columns))
                        : vec::Activate(spec_.activation, u, nullptr, Size(columns));
          }
        },
        kActivateWork * columns);
    KindSet kinds;
    kinds.Add(down.matrix);
    AddPrepare(program, row, kinds, layout, gate.matrix ? gate_ : up_, prepared_ffn_);
  }
  AddRowParallel(program, down, layout, prepared_ffn_, shares, out);
}

void Forward::AddFfn(Program& program, Workers row, const LayerPlan& layer) {
  const LayerWeights& w = *layer.weights;
  const auto whole = kernels::KLayout::Whole(spec_.n_embd);
  KindSet kinds;
  for (const auto* linear : {&w.gate, &w.up, &w.router, &w.shared_gate, &w.shared_up, &w.shared_router})
    kinds.Add(linear->matrix);
  for (const auto& expert : w.experts) {
    kinds.Add(expert.gate);
    kinds.Add(expert.up);
  }
  // A parallel FFN reads the layer's input: its norm comes before the attention's result is added.
  if (!spec_.parallel) AddResidual(program, row, w.attention_post_norm, w.o.bias, sum_);
  if (w.ffn_norm.present()) AddNorm(program, row, w.ffn_norm, x_, h_);
  const bool from_h = w.ffn_norm.present() || layer.shares_input;
  if (!layer.shares_input || layer.last) AddPrepare(program, row, kinds, whole, from_h ? h_ : x_, prepared_h_);
  if (spec_.parallel) AddResidual(program, row, w.attention_post_norm, w.o.bias, sum_);

  if (!layer.spec->experts) {
    AddGatedFfn(program, row, w.gate, w.up, w.down, layer.ffn_layout, layer.ffn_shares, sum_);
  } else {
    experts_->Add(program, row, layer);
  }
  AddResidual(program, row, w.ffn_post_norm, w.down.bias, sum_);
}

void Forward::AddLogits(Program& program, Workers row) {
  const auto& output = weights_.output;
  AddNorm(program, row, weights_.final_norm, x_, h_);
  if (!output.matrix) return;
  KindSet kinds;
  kinds.Add(output.matrix);
  AddPrepare(program, row, kinds, kernels::KLayout::Whole(spec_.n_embd), h_, prepared_h_);
  program.Add(
      Workers::kDealt,
      [this, &output](int ith, int nth) {
        output.matrix->Multiply(prepared_h_.For(*output.matrix), step_.rows, nullptr, logits_.floats(),
                                Size(weights_.vocabulary.count()), 0, ith, nth);
      },
      weights_.vocabulary.count() * spec_.n_embd);
  if (output.bias.empty() && spec_.logit_scale == 1 && spec_.final_softcap == 0) return;
  program.Add(
      Workers::kDealt,
      [this, &output](int ith, int nth) {
        const int64_t held = weights_.vocabulary.count();
        const auto part = PartOf(held, ith, nth);
        const size_t count = Size(part.count());
        for (int64_t r = 0; r < step_.rows; ++r) {
          float* logits = Row(logits_, r, held) + part.first;
          if (!output.bias.empty()) vec::Add(logits, output.bias.data() + part.first, count);
          if (spec_.logit_scale != 1) vec::Scale(logits, spec_.logit_scale, count);
          if (spec_.final_softcap != 0) vec::SoftCap(logits, spec_.final_softcap, count);
        }
      },
      4 * weights_.vocabulary.count());
}

}  // namespace shoal
