// What: who computes what. A ShardPlan is the planner's answer and the ranks' order; it is plain and printable.
// A group of ranks holds one replica of the model. Ranks with the same layers are a stage: they share out its slices (tensor
// parallel); stages follow each other (pipeline parallel).
//
//     rank 0: layers 0..12, slices 0..8     \\ stage 0        rows of the residual stream
//     rank 1: layers 0..12, slices 8..16    /     |
//     rank 2: layers 12..22, slices 0..16     stage 1          its first rank draws the tokens
//
// Fails: CheckShardPlan is kBadShares, naming what does not fit.
// Reads next: core/slices.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/kv_type.h"
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
  KvType kv_type = KvType::kF16;     // what the pool holds
  int size() const { return static_cast<int>(ranks.size()); }
};

// Ranks [first_rank, first_rank + ranks) hold layers [first_layer, last_layer).
struct Stage {
  int first_rank = 0;
  int ranks = 0;
  int first_layer = 0;
  int last_layer = 0;
};

// In the order of their layers, which is that of their ranks.
std::vector<Stage> StagesOf(const ShardPlan& plan);
// The stage's ranks alone, as a plan of their own.
ShardPlan StagePlan(const ShardPlan& plan, const Stage& stage);
// The rank that draws the tokens: the first of the last stage.
int DrawingRank(const ShardPlan& plan);

// Whether the ranks' shares make up the whole model, each part once: stages follow each other without a gap, and in each the
// ranks' slices do.
Status CheckShardPlan(const ShardPlan& plan, int layers);

std::string ToString(const ShardPlan& plan);

}  // namespace shoal
