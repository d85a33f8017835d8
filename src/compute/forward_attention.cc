// The first half of a layer, and what comes before all layers: embedding rows, rotary tables, heads, attention.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "compute/experts.h"
#include "compute/forward.h"
#include "compute/vector_math.h"

namespace shoal {
namespace {

size_t Size(int64_t n) { return static_cast<size_t>(n); }

float* Row(const AlignedBuffer& buffer, int64_t row, int64_t width) { return buffer.floats() + Size(row * width); }

}  // namespace

int64_t Forward::TableRow(bool positions, int row) const {
  return positions ? step_.positions[Size(row)] : step_.batch.tokens[Size(row)];
}

// Each rank holds a part of the table's rows; all ranks bring what the step needs of theirs. Bytes are copied, so the
// result is exact. As many rows a meeting as one rank may have to bring.
Status Forward::GatherTable(const TableWeights& table, bool positions, GatheredRows& gathered) {
  const size_t row_bytes = table.row_bytes();
  gathered.place.resize(Size(step_.rows));
  gathered.bytes.Reserve(std::max<size_t>(Size(step_.rows) * row_bytes, 64));
  const auto at_once = static_cast<int64_t>(std::max<size_t>(1, meeting_bytes_ / row_bytes));
  for (int64_t begin = 0; begin < step_.rows; begin += at_once)
    SHOAL_RETURN_IF_ERROR(
        GatherTableRows(table, positions, {begin, std::min<int64_t>(begin + at_once, step_.rows)}, gathered));
  return {};
}

Status Forward::GatherTableRows(const TableWeights& table, bool positions, UnitRange rows, GatheredRows& gathered) {
  const size_t row_bytes = table.row_bytes();
  const size_t base = Size(rows.first) * row_bytes;
  std::vector<size_t> counts(Size(plan_.size()), 0);
  size_t at = base;
  send_.clear();
  for (int rank = 0; rank < plan_.size(); ++rank) {
    const auto range = UnitsOf(plan_.ranks[Size(rank)].slices, table.ref.rows);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const int64_t wanted = TableRow(positions, static_cast<int>(r));
      if (wanted < range.first || wanted >= range.last) continue;
      gathered.place[Size(r)] = at;
      at += row_bytes;
      counts[Size(rank)] += row_bytes;
      if (rank != rank_) continue;
      const size_t sent = send_.size();
      send_.resize(sent + row_bytes);
      if (table.packed) {
        weights_.output.matrix->Row(wanted - range.first, reinterpret_cast<float*>(send_.data() + sent));
      } else {
        std::memcpy(send_.data() + sent, table.bytes.data() + Size(wanted - range.first) * row_bytes, row_bytes);
      }
    }
  }
  return collective_.AllGather(send_, counts, std::span(gathered.bytes.bytes() + base, at - base));
}

void Forward::LookUp(const TableWeights& table, const GatheredRows& gathered, bool positions, int ith, int nth) {
  const int64_t n = spec_.n_embd;
  const auto part = PartOf(step_.rows, ith, nth);
  for (int64_t r = part.first; r < part.last; ++r) {
    const int64_t wanted = TableRow(positions, static_cast<int>(r));
    float* x = Row(x_, r, n);
    float* to = positions ? Row(h_, r, n) : x;  // h_ is not in use yet
    const bool alone = plan_.size() == 1;
    const std::byte* from = alone ? nullptr : gathered.bytes.bytes() + gathered.place[Size(r)];
    if (alone && table.packed) {
      weights_.output.matrix->Row(wanted, to);
    } else if (table.packed) {
      std::memcpy(to, from, table.row_bytes());
    } else {
      if (alone) from = table.bytes.data() + Size(wanted) * table.row_bytes();
      kernels::Dequantize(static_cast<kernels::WeightType>(table.ref.type), from, n, to);
    }
    if (positions) {
      vec::Add(x, to, Size(n));
    } else if (spec_.embedding_scale != 1) {
      vec::Scale(x, spec_.embedding_scale, Size(n));
    }
  }
}

void Forward::FillRope(int ith, int nth) {
  const auto part = PartOf(step_.rows, ith, nth);
  for (int64_t r = part.first; r < part.last; ++r) {
    rope_.Fill(Size(r), step_.positions[Size(r)]);
    if (std::ranges::any_of(spec_.layers, &LayerSpec::local_rope)) local_rope_.Fill(Size(r), step_.positions[Size(r)]);
  }
}

void Forward::AddEmbedding(Program& program, Workers row) {
  const bool learned = static_cast<bool>(spec_.positions);
  if (plan_.size() > 1) {
    program.AddMeeting(Partners::kStage, [this, learned]() -> Status {
      SHOAL_RETURN_IF_ERROR(GatherTable(weights_.embedding, false, gathered_));
      return learned ? GatherTable(weights_.positions, true, gathered_positions_) : Status{};
    });
  }
  program.Add(row, [this, learned](int ith, int nth) {
    LookUp(weights_.embedding, gathered_, false, ith, nth);
    if (learned) LookUp(weights_.positions, gathered_positions_, true, ith, nth);
    if (rope_.kind() != RopeKind::kNone) FillRope(ith, nth);
  });
  if (weights_.embedding_norm.present()) AddNorm(program, row, weights_.embedding_norm, x_, x_);
}

void Forward::AddAttention(Program& program, Workers row, const LayerPlan& layer) {
  const LayerWeights& w = *layer.weights;
  const bool normed = w.attention_norm.present();
  if (normed) AddNorm(program, row, w.attention_norm, x_, h_);
  KindSet kinds;
  for (const auto* linear : {&w.q, &w.k, &w.v}) kinds.Add(linear->matrix);
  if (layer.shares_input) {
    for (const auto* linear : {&w.gate, &w.up}) kinds.Add(linear->matrix);
  }
  AddPrepare(program, row, kinds, kernels::KLayout::Whole(spec_.n_embd), normed ? h_ : x_, prepared_h_);

  const bool whole_norm = spec_.qk_norm == QkNorm::kWholeVector;
  if (w.shape.heads.count() > 0) {
    program.Add(
        Workers::kDealt,
        [this, &w](int ith, int nth) {
          const auto multiply = [&](const LinearWeights& linear, AlignedBuffer& out) {
            const auto& matrix = *linear.matrix;
            matrix.Multiply(prepared_h_.For(matrix), step_.rows, nullptr, out.floats(), Size(matrix.rows()), 0, ith,
                            nth);
          };
          multiply(w.q, q_);
          multiply(w.k, k_);
          multiply(w.v, v_);
        },
        (w.shape.heads.count() + 2 * w.shape.kv_heads.count()) * spec_.head_dim_k * spec_.n_embd);
    if (whole_norm) program.Add(row, [this, &layer](int ith, int nth) { SumSquares(layer, ith, nth); });
  }
  if (whole_norm) {
    program.AddMeeting(Partners::kStage, [this, &layer] {
      std::vector<size_t> counts;
      size_t total = 0;
      for (const auto& rank : plan_.ranks) {
        const auto shape = ShapeOf(spec_, *layer.spec, rank.slices);
        counts.push_back(Size(step_.rows * (shape.heads.count() + shape.own_kv.count())) * sizeof(float));
        total += counts.back();
      }
      return collective_.AllGather(std::span(squares_.bytes(), counts[Size(rank_)]), counts,
                                   std::span(all_squares_.bytes(), total));
    });
  }
  if (w.shape.heads.count() > 0) {
    const int64_t kv_width = w.shape.kv_heads.count() * (spec_.head_dim_k + spec_.head_dim_v);
    program.Add(
        row, [this, &layer](int ith, int nth) { FinishHeads(layer, ith, nth); },
        kNormWork * (w.shape.heads.count() * spec_.head_dim_k + kv_width));
    program.Add(
        row,
        [this, &layer](int ith, int nth) {
          const auto& kv = layer.kv;
          kernels::StoreKv(kv, step_.batch.segments, k_.floats(), Size(kv.kv_heads) * Size(kv.k_dim), v_.floats(),
                           Size(kv.kv_heads) * Size(kv.v_dim), ith, nth);
        },
        kNormWork * kv_width);
    // Not dealt: with few rows more parts would mean that keys and values are read more often.
    program.Add(
        Workers::kAll,
        [this, &layer](int ith, int nth) {
          const auto& shape = layer.attention;
          kernels::Attend(layer.kv, shape, step_.batch.segments, q_.floats(), Size(shape.heads) * Size(layer.kv.k_dim),
                          heads_.floats(), Size(shape.heads) * Size(layer.kv.v_dim), ith, nth);
        },
        [this, &w](int) { return w.shape.heads.count() * spec_.head_dim_k * step_.attended * kAttendWork; });
  }
  if (layer.last) program.Add(Workers::kOne, [this, &layer](int, int) { KeepLogitRows(layer); });
  KindSet out_kinds;
  out_kinds.Add(w.o.matrix);
  AddPrepare(program, row, out_kinds, layer.attention_layout, heads_, prepared_heads_);
  AddRowParallel(program, w.o, layer.attention_layout, prepared_heads_, layer.attention_shares, sum_);
}

// Biases, then the squares of each head for a norm over all heads of all ranks: a sum by head, added in head order, is the
// same for every split.
void Forward::SumSquares(const LayerPlan& layer, int ith, int nth) {
  const LayerWeights& w = *layer.weights;
  const auto& shape = w.shape;
  const int64_t dim = spec_.head_dim_k, heads = shape.heads.count(), kv_heads = shape.kv_heads.count();
  const auto part = PartOf(step_.rows, ith, nth);
  for (int64_t r = part.first; r < part.last; ++r) {
    float* q = Row(q_, r, heads * dim);
    float* k = Row(k_, r, kv_heads * dim);
    if (!w.q.bias.empty()) vec::Add(q, w.q.bias.data(), Size(heads * dim));
    if (!w.k.bias.empty()) vec::Add(k, w.k.bias.data(), Size(kv_heads * dim));
    float* out = Row(squares_, r, heads + shape.own_kv.count());
    for (int64_t h = 0; h < heads; ++h) *out++ = vec::SumOfSquares(q + h * dim, Size(dim));
    for (int64_t h = shape.own_kv.first; h < shape.own_kv.last; ++h)
      *out++ = vec::SumOfSquares(k + (h - shape.kv_heads.first) * dim, Size(dim));
  }
}

float Forward::WholeNormFactor(const LayerPlan& layer, int row, bool keys) const {
  const float* at = all_squares_.floats();
  float sum = 0;
  for (const auto& rank : plan_.ranks) {
    const auto shape = ShapeOf(spec_, *layer.spec, rank.slices);
    const int64_t heads = shape.heads.count(), own = shape.own_kv.count();
    const float* squares = at + row * (heads + own) + (keys ? heads : 0);
    for (int64_t h = 0; h < (keys ? own : heads); ++h) sum += squares[h];
    at += step_.rows * (heads + own);
  }
  const int heads = keys ? layer.spec->kv_heads : layer.spec->heads;
  return 1.0f / std::sqrt(sum / static_cast<float>(heads * spec_.head_dim_k) + spec_.norm_eps);
}

void Forward::NormHeads(const LayerPlan& layer, int row, float* q, float* k) {
  const LayerWeights& w = *layer.weights;
  const auto dim = Size(spec_.head_dim_k);
  const bool own = spec_.qk_norm == QkNorm::kPerHeadOwn;
  const auto each = [&](float* x, const std::vector<float>& weight, int64_t heads, bool keys) {
    if (spec_.qk_norm == QkNorm::kWholeVector) {
      const float factor = WholeNormFactor(layer, row, keys);
      for (size_t i = 0; i < Size(heads) * dim; ++i) x[i] = x[i] * factor * weight[i];
      return;
    }
    for (size_t h = 0; h < Size(heads); ++h)
      vec::Norm(spec_.qk_norm_kind, x + h * dim, weight.data() + (own ? h * dim : 0), nullptr, spec_.norm_eps, dim,
                x + h * dim);
  };
  each(q, w.q_norm, w.shape.heads.count(), false);
  each(k, w.k_norm, w.shape.kv_heads.count(), true);
}

// Biases, norms and rotation of the step's query and key rows.
void Forward::FinishHeads(const LayerPlan& layer, int ith, int nth) {
  const LayerWeights& w = *layer.weights;
  const auto dim = Size(spec_.head_dim_k), v_dim = Size(spec_.head_dim_v);
  const size_t heads = Size(w.shape.heads.count()), kv_heads = Size(w.shape.kv_heads.count());
  const bool biased = spec_.qk_norm == QkNorm::kWholeVector;  // SumSquares has added them
  const RopeTable& rope = layer.spec->local_rope ? local_rope_ : rope_;
  const auto part = PartOf(step_.rows, ith, nth);
  for (int64_t r = part.first; r < part.last; ++r) {
    float* q = q_.floats() + Size(r) * heads * dim;
    float* k = k_.floats() + Size(r) * kv_heads * dim;
    float* v = v_.floats() + Size(r) * kv_heads * v_dim;
    if (!biased && !w.q.bias.empty()) vec::Add(q, w.q.bias.data(), heads * dim);
    if (!biased && !w.k.bias.empty()) vec::Add(k, w.k.bias.data(), kv_heads * dim);
    if (!w.v.bias.empty()) vec::Add(v, w.v.bias.data(), kv_heads * v_dim);
    if (spec_.clamp_qkv > 0) {
      vec::Clamp(q, spec_.clamp_qkv, heads * dim);
      vec::Clamp(k, spec_.clamp_qkv, kv_heads * dim);
      vec::Clamp(v, spec_.clamp_qkv, kv_heads * v_dim);
    }
    if (spec_.qk_norm != QkNorm::kNone) NormHeads(layer, static_cast<int>(r), q, k);
    if (layer.spec->rope) {
      const float *cos = rope.cos(Size(r)), *sin = rope.sin(Size(r));
      for (size_t h = 0; h < heads; ++h) vec::Rotate(rope.kind(), q + h * dim, cos, sin, rope.half());
      for (size_t h = 0; h < kv_heads; ++h) vec::Rotate(rope.kind(), k + h * dim, cos, sin, rope.half());
    }
    // Queries are rounded like the keys they meet: so does the reference, whose results models are judged by.
    if (spec_.scaled_query) vec::Scale(q, spec_.attention_scale, heads * dim);
    if (plan_.kv_type != KvType::kF32) vec::RoundToHalf(q, heads * dim);
  }
}

// After the last attention only the rows whose logits are wanted go on.
void Forward::KeepLogitRows(const LayerPlan& layer) {
  const int64_t width = layer.weights->shape.heads.count() * spec_.head_dim_v, n = spec_.n_embd;
  const auto keep = [](const AlignedBuffer& buffer, int64_t to, int64_t from, int64_t count) {
    std::memmove(Row(buffer, to, count), Row(buffer, from, count), Size(count) * sizeof(float));
  };
  int64_t to = 0;
  for (const int32_t from : step_.batch.logit_rows) {
    if (from != to) {
      if (width > 0) keep(heads_, to, from, width);
      keep(x_, to, from, n);
      if (layer.shares_input) keep(h_, to, from, n);
    }
    ++to;
  }
  step_.rows = static_cast<int>(to);
}

}  // namespace shoal
