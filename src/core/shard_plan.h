// What: who computes what. A ShardPlan is the planner's answer and the ranks' order; it is plain and printable.
// A group of ranks holds one replica of the model. In this first form a group has one stage (tensor parallel only).
// Reads next: core/slices.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/slices.h"

namespace shoal {

// The share of one rank: a contiguous run of virtual slices of every row-parallel product, and with it of query heads,
// FFN blocks and vocabulary rows. Layers [first_layer, last_layer) are its stage; first and last stage own embedding and logits.
struct RankShare {
  SliceRun slices;
  int first_layer = 0;
  int last_layer = 0;
  friend bool operator==(const RankShare&, const RankShare&) = default;
};

struct ShardPlan {
  std::vector<RankShare> ranks;      // index = rank
  int kv_blocks = 0;                 // size of the block pool, the same on every rank
  std::vector<std::string> reasons;  // why, one line each
  int size() const { return static_cast<int>(ranks.size()); }
};

std::string ToString(const ShardPlan& plan);

}  // namespace shoal
