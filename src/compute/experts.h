// What: the mixture-of-experts half of a layer: routing, the chosen experts' products, their sum in index order inside
// each slice of K (so that the result does not depend on the split), the shared expert.
// Owns: its buffers.
// Threads: as Forward.
// Reads next: compute/forward.h, core/slices.h.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/forward.h"

namespace shoal {

class Forward::Experts {
 public:
  explicit Experts(Forward& forward) : forward_(forward) {}
  void Reserve(int rows);
  // Reads forward.prepared_h_, leaves the layer's result in forward.sum_.
  void Add(Program& program, Workers row, const LayerPlan& layer);

 private:
  // Slots: the (expert, row) pairs of a step, by expert, then by row. A few at a time go through the down products.
  static constexpr int64_t kSlotsAtOnce = 64;

  void Route(const LayerPlan& layer);
  void MultiplyIn(const LayerPlan& layer, int ith, int nth);
  void MultiplyDown(const LayerPlan& layer, const kernels::KLayout& split, int ith, int nth);
  void AddUp(int64_t first_slot, int64_t slots, int64_t slices, int ith, int nth);
  void FoldSlices(const kernels::KLayout& split, const std::vector<Subtree>& trees, AlignedBuffer& out, int ith,
                  int nth);
  void AddShared(Program& program, Workers row, const LayerPlan& layer);

  Forward& forward_;
  AlignedBuffer router_logits_;  // [rows, experts]
  AlignedBuffer gate_, up_;      // [slots, columns held]
  PreparedInput prepared_;
  AlignedBuffer down_;               // [slices, kSlotsAtOnce, n_embd]
  AlignedBuffer slices_;             // [slices, rows, n_embd]: weighted sums over experts
  std::vector<int32_t> slot_row_;    // the row of each slot
  std::vector<int32_t> slot_index_;  // 0, 1, 2...
  std::vector<float> slot_weight_;
  std::vector<int32_t> first_slot_;  // of each expert; one more at the end
  std::vector<int32_t> chosen_;      // Route's: the experts of each row, ascending
  std::vector<float> chosen_weight_;
  std::vector<float> probability_;
  ThreadGate gate_of_threads_;
};

}  // namespace shoal
