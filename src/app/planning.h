// What: from what the nodes have to what each computes: whether a rank's weights fit into its node's memory, and how much
// of the rest its KV cache may take.
// Fails: kOutOfMemory naming the node that is too small; as plan/split.h.
// Reads next: plan/split.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/options.h"
#include "base/result.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"

namespace shoal {

struct NodeFacts {
  std::string name;
  uint64_t memory = 0;  // bytes that its rank may use for weights and cache together
};

Result<ShardPlan> MakePlan(const ModelSpec& spec, const std::vector<NodeFacts>& nodes, const EngineFlags& flags);

}  // namespace shoal
