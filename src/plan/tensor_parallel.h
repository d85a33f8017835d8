// What: the planner's first form: one group, one stage, slices shared out by the nodes' weights; and the size of the KV pool.
// Pure: measured facts in, a ShardPlan with its reasons out.
// Limits: kMaxRanks nodes.
// Fails: kInvalidArgument when there are more nodes than slices or no memory for one context.
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
};

// How many KV blocks a pool wants: enough for `sequences` full contexts, at least one.
struct PoolWish {
  int sequences = 64;
};

// Cuts the model. kv_blocks is still 0: it needs each rank's block size, which needs the shares.
Result<ShardPlan> PlanTensorParallel(const PlanModel& model, const std::vector<PlanNode>& nodes);

// Fills plan.kv_blocks: block_bytes[r] is what one block takes on rank r.
Status SizeKvPool(ShardPlan& plan, const PlanModel& model, const std::vector<PlanNode>& nodes,
                  const std::vector<uint64_t>& block_bytes, PoolWish wish);

}  // namespace shoal
