// What: the planner's first form: one group of so many stages. Layers are shared out to the stages and slices to the ranks of
// a stage, by the nodes' weights; and the size of the KV pool.
// Pure: measured facts in, a ShardPlan with its reasons out.
// Limits: kMaxRanks nodes; at most as many stages as nodes and as layers.
// Fails: kBadShares when nodes, stages or weights make no sense; kOutOfMemory when there is no memory for one block.
// Reads next: core/shard_plan.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/shard_plan.h"

namespace shoal {

struct PlanNode {
  std::string name;
  double weight = 1;       // its share of the work, relative to the others'
  uint64_t kv_budget = 0;  // bytes that its KV pool may take
};

struct PlanModel {
  int layers = 0;
  int context = 0;             // positions of one full context
  int useful_ranks = kSlices;  // more than these find no work in some layer
  double output_cost = 0;      // of the logits, in layers: the last stage computes them too
};

// How many KV blocks a pool wants: enough for `sequences` full contexts, at least one.
struct PoolWish {
  int sequences = 64;
};

// Cuts the model: the nodes, in their order, into `stages` runs as even as can be, and the layers so that the slowest stage has as
// little to do as can be. kv_blocks is still 0: it needs each rank's block size, which needs the shares.
Result<ShardPlan> PlanSplit(const PlanModel& model, const std::vector<PlanNode>& nodes, int stages);

// Fills plan.kv_blocks: block_bytes[r] is what one block takes on rank r.
Status SizeKvPool(ShardPlan& plan, const PlanModel& model, const std::vector<PlanNode>& nodes,
                  const std::vector<uint64_t>& block_bytes, PoolWish wish);

}  // namespace shoal
