#include "compute/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "compute/vector_math.h"

namespace shoal {
namespace {

size_t Size(int64_t n) { return static_cast<size_t>(n); }

// llama.cpp keeps the sum of the chosen experts' weights above the smallest normal half.
constexpr float kSmallestWeightSum = 6.103515625e-5f;

}  // namespace

void Forward::Experts::Reserve(int rows) {
  const auto& spec = forward_.spec_;
  if (!spec.mixture()) return;
  const int64_t slots = int64_t{rows} * spec.n_experts_used;
  router_logits_.Reserve(Size(rows) * Size(spec.n_experts) * sizeof(float));
  slot_row_.resize(Size(slots));
  slot_weight_.resize(Size(slots));
  slot_index_.resize(Size(slots));
  std::iota(slot_index_.begin(), slot_index_.end(), 0);
  first_slot_.resize(Size(spec.n_experts + 1));
  chosen_.resize(Size(slots));
  chosen_weight_.resize(Size(slots));
  probability_.resize(Size(spec.n_experts));
  for (const auto& layer : forward_.layers_) {
    if (!layer.spec->experts) continue;
    const auto layout = SplitSlices(layer.ffn_layout);
    gate_.Reserve(Size(slots * layout.columns()) * sizeof(float));
    up_.Reserve(Size(slots * layout.columns()) * sizeof(float));
    for (int kind = 0; kind < 2; ++kind) {
      size_t bytes = 0;
      for (int64_t n = spec.n_experts_used; n <= slots; n += spec.n_experts_used)
        bytes = std::max(bytes, kernels::PreparedBytes(static_cast<kernels::ActivationKind>(kind), layout, n));
      prepared_.of[kind].Reserve(bytes);
    }
    const int64_t n = spec.n_embd;
    down_.Reserve(Size(layout.outputs() * kSlotsAtOnce * n) * sizeof(float));
    slices_.Reserve(Size(layout.outputs() * rows * n) * sizeof(float));
  }
}

// Chooses each row's experts and orders the pairs by expert. The same on every rank.
void Forward::Experts::Route(const LayerPlan&) {
  const auto& spec = forward_.spec_;
  const size_t experts = Size(spec.n_experts), used = Size(spec.n_experts_used), rows = Size(forward_.step_.rows);
  std::fill(first_slot_.begin(), first_slot_.end(), 0);
  std::vector<bool> taken;
  for (size_t r = 0; r < rows; ++r) {
    const float* logits = router_logits_.floats() + r * experts;
    const float largest = *std::max_element(logits, logits + experts);
    float sum = 0;
    for (size_t e = 0; e < experts; ++e) sum += probability_[e] = std::exp(logits[e] - largest);
    for (size_t e = 0; e < experts; ++e) probability_[e] /= sum;
    int32_t* chosen = chosen_.data() + r * used;
    taken.assign(experts, false);
    for (size_t i = 0; i < used; ++i) {
      size_t best = experts;
      for (size_t e = 0; e < experts; ++e)
        if (!taken[e] && (best == experts || probability_[e] > probability_[best])) best = e;
      taken[best] = true;
    }
    float chosen_sum = 0;
    for (size_t e = 0, i = 0; e < experts; ++e) {
      if (!taken[e]) continue;
      chosen[i] = static_cast<int32_t>(e);
      chosen_weight_[r * used + i++] = probability_[e];
      chosen_sum += probability_[e];
      ++first_slot_[e + 1];
    }
    const float divisor = spec.normalise_expert_weights ? std::max(chosen_sum, kSmallestWeightSum) : 1.0f;
    for (size_t i = 0; i < used; ++i)
      chosen_weight_[r * used + i] = chosen_weight_[r * used + i] / divisor * spec.expert_weights_scale;
  }
  std::partial_sum(first_slot_.begin(), first_slot_.end(), first_slot_.begin());
  std::vector<int32_t> next(first_slot_.begin(), first_slot_.end() - 1);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < used; ++i) {
      const auto slot = Size(next[Size(chosen_[r * used + i])]++);
      slot_row_[slot] = static_cast<int32_t>(r);
      slot_weight_[slot] = chosen_weight_[r * used + i];
    }
  }
}

void Forward::Experts::MultiplyIn(const LayerPlan& layer, int ith, int nth) {
  const int64_t columns = layer.ffn_layout.columns();
  for (size_t e = 0; e < layer.weights->experts.size(); ++e) {
    const int64_t first = first_slot_[e], count = first_slot_[e + 1] - first;
    if (count == 0) continue;
    const auto& expert = layer.weights->experts[e];
    for (const auto& [matrix, out] : {std::pair{&*expert.gate, &gate_}, {&*expert.up, &up_}})
      matrix->Multiply(forward_.prepared_h_.For(*matrix), count, slot_row_.data() + first,
                       out->floats() + Size(first * columns), Size(columns), 0, ith, nth);
  }
}

void Forward::Experts::MultiplyDown(const LayerPlan& layer, const kernels::KLayout& split, int ith, int nth) {
  const int64_t n = forward_.spec_.n_embd, rows = forward_.step_.rows;
  const int64_t slots = rows * forward_.spec_.n_experts_used, slices = split.outputs();
  const auto zero = PartOf(slices * rows * n, ith, nth);
  std::fill(slices_.floats() + zero.first, slices_.floats() + zero.last, 0.0f);
  for (int64_t begin = 0; begin < slots; begin += kSlotsAtOnce) {
    const int64_t end = std::min(slots, begin + kSlotsAtOnce);
    for (size_t e = 0; e < layer.weights->experts.size(); ++e) {
      const int64_t first = std::max<int64_t>(begin, first_slot_[e]), last = std::min<int64_t>(end, first_slot_[e + 1]);
      if (first >= last) continue;
      const auto& matrix = *layer.weights->experts[e].down;
      matrix.Multiply(prepared_.For(matrix), last - first, slot_index_.data() + first,
                      down_.floats() + Size((first - begin) * n), Size(n), Size(kSlotsAtOnce * n), ith, nth);
    }
    gate_of_threads_.Wait(nth);
    AddUp(begin, end - begin, slices, ith, nth);
    gate_of_threads_.Wait(nth);
  }
}

// Adds the down products of some slots to the sums of their rows: experts in index order, as the slots lie.
void Forward::Experts::AddUp(int64_t first_slot, int64_t slots, int64_t slices, int ith, int nth) {
  const int64_t n = forward_.spec_.n_embd, rows = forward_.step_.rows;
  constexpr int64_t kChunk = 256;
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const auto part = PartOf(slices * chunks, ith, nth);
  for (int64_t item = part.first; item < part.last; ++item) {
    const int64_t slice = item / chunks, column = item % chunks * kChunk, count = std::min(kChunk, n - column);
    for (int64_t s = 0; s < slots; ++s) {
      const int64_t row = slot_row_[Size(first_slot + s)];
      vec::AddScaled(slices_.floats() + (slice * rows + row) * n + column,
                     down_.floats() + (slice * kSlotsAtOnce + s) * n + column, slot_weight_[Size(first_slot + s)],
                     Size(count));
    }
  }
}

void Forward::Experts::FoldSlices(const kernels::KLayout& split, const std::vector<Subtree>& trees, AlignedBuffer& out,
                                  int ith, int nth) {
  const int64_t size = int64_t{forward_.step_.rows} * forward_.spec_.n_embd;
  const auto part = PartOf(size, ith, nth);
  if (part.count() == 0) return;
  for (size_t t = 0; t < trees.size(); ++t) {
    std::vector<std::pair<Subtree, float*>> leaves;
    for (size_t s = 0; s < split.slices.size(); ++s) {
      const int index = split.slices[s].index;
      if (index >= trees[t].begin && index < trees[t].end())
        leaves.emplace_back(Subtree{index, 1}, slices_.floats() + static_cast<int64_t>(s) * size + part.first);
    }
    const float* sum =
        CombineSubtrees(std::move(leaves), [&](float* a, const float* b) { vec::Add(a, b, Size(part.count())); });
    std::memcpy(out.floats() + static_cast<int64_t>(t) * size + part.first, sum, Size(part.count()) * sizeof(float));
  }
}

void Forward::Experts::Add(Program& program, Workers row, const LayerPlan& layer) {
  Forward& f = forward_;
  const LayerWeights& w = *layer.weights;
  const bool alone = f.plan_.size() == 1;
  const auto split = SplitSlices(layer.ffn_layout);
  program.Add(
      Workers::kDealt,
      [this, &f, &w](int ith, int nth) {
        const auto& router = *w.router.matrix;
        router.Multiply(f.prepared_h_.For(router), f.step_.rows, nullptr, router_logits_.floats(), Size(router.rows()),
                        0, ith, nth);
      },
      int64_t{f.spec_.n_experts} * f.spec_.n_embd);
  program.Add(Workers::kOne, [this, &layer](int, int) { Route(layer); });
  const int64_t work = split.columns() * f.spec_.n_embd * f.spec_.n_experts_used;
  if (split.columns() > 0) {
    program.Add(Workers::kDealt, [this, &layer](int ith, int nth) { MultiplyIn(layer, ith, nth); }, 2 * work);
    const int64_t elements = split.columns() * f.spec_.n_experts_used;  // of a row
    program.Add(
        Workers::kDealt,
        [this, &f, columns = split.columns()](int ith, int nth) {
          const auto part = PartOf(int64_t{f.step_.rows} * f.spec_.n_experts_used, ith, nth);
          for (int64_t s = part.first; s < part.last; ++s)
            vec::Activate(f.spec_.activation, gate_.floats() + s * columns, up_.floats() + s * columns, Size(columns));
        },
        kActivateWork * elements);
    KindSet kinds;
    for (const auto& expert : w.experts) kinds.Add(expert.down);
    for (int kind = 0; kind < 2; ++kind) {
      if (!kinds.of[kind]) continue;
      program.Add(
          Workers::kDealt,
          [this, &f, kind, split](int ith, int nth) {
            kernels::Prepare(static_cast<kernels::ActivationKind>(kind), split, gate_.floats(), split.columns(),
                             int64_t{f.step_.rows} * f.spec_.n_experts_used, prepared_.of[kind].bytes(), ith, nth);
          },
          kQuantiseWork * elements);
    }
    program.Add(Workers::kAll, [this, &layer, split](int ith, int nth) { MultiplyDown(layer, split, ith, nth); }, work);
    program.Add(
        Workers::kDealt,
        [this, &f, split, alone, trees = layer.ffn_layout.subtrees](int ith, int nth) {
          FoldSlices(split, trees, alone ? f.sum_ : f.partial_, ith, nth);
        },
        kNormWork * f.spec_.n_embd * split.outputs());
  }
  if (!alone) f.AddReduce(program, layer.ffn_shares, f.sum_);
  if (f.spec_.n_ff_shared > 0) AddShared(program, row, layer);
}

// sum += sigmoid(router) * shared expert, after the others.
void Forward::Experts::AddShared(Program& program, Workers row, const LayerPlan& layer) {
  Forward& f = forward_;
  const LayerWeights& w = *layer.weights;
  f.AddGatedFfn(program, row, w.shared_gate, w.shared_up, w.shared_down, layer.shared_layout, layer.shared_shares,
                f.shared_sum_);
  if (w.shared_router.matrix) {
    program.Add(Workers::kOne, [&f, &w](int, int) {
      const auto& router = *w.shared_router.matrix;
      router.Multiply(f.prepared_h_.For(router), f.step_.rows, nullptr, f.shared_gate_.floats(), 1, 0, 0, 1);
    });
  }
  program.Add(row, [&f, &w](int ith, int nth) {
    const int64_t n = f.spec_.n_embd;
    const auto part = PartOf(f.step_.rows, ith, nth);
    for (int64_t r = part.first; r < part.last; ++r) {
      const float* shared = f.shared_sum_.floats() + r * n;
      float by = 1;
      if (w.shared_router.matrix) by = 1.0f / (1.0f + std::exp(-f.shared_gate_.floats()[r]));
      if (!w.shared_down.bias.empty()) vec::Add(f.shared_sum_.floats() + r * n, w.shared_down.bias.data(), Size(n));
      vec::AddScaled(f.sum_.floats() + r * n, shared, by, Size(n));
    }
  });
}

}  // namespace shoal
