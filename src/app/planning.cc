#include "app/planning.h"

#include <algorithm>
#include <cstdio>

#include "compute/executor.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "plan/split.h"

namespace shoal {
namespace {

// Bytes stand for cost: decoding reads each weight once a step.
PlanModel ModelFacts(const ModelSpec& spec) {
  const ModelWeights weights = ModelWeightsOf(spec);
  const double output = weights.layer > 0 ? static_cast<double>(weights.output) / weights.layer : 0;
  return {spec.n_layers, spec.context_length, MaxUsefulRanks(spec), output};
}

std::string Size(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

// What the rank's weights leave of its node's memory.
Result<uint64_t> RestOf(const NodeFacts& node, const ModelSpec& spec, const RankShare& share) {
  const uint64_t weights = ShareWeightBytes(spec, share);
  if (weights >= node.memory)
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                node.name + " has too little memory for its share of the model",
                Size(weights) + " of weights, " + Size(node.memory) + " of memory");
  return node.memory - weights;
}

}  // namespace

Result<ShardPlan> MakePlan(const ModelSpec& spec, const std::vector<NodeFacts>& nodes, const EngineFlags& flags) {
  std::vector<PlanNode> shares;
  for (size_t i = 0; i < nodes.size(); ++i)
    shares.push_back({nodes[i].name, flags.shares.empty() ? 1.0 : flags.shares[i], 0});
  SHOAL_ASSIGN(ShardPlan plan, PlanSplit(ModelFacts(spec), shares, flags.stages));
  plan.kv_type = flags.kv_type;
  std::vector<uint64_t> block_bytes;
  uint64_t least = 0;  // that --kv-memory can mean
  for (size_t r = 0; r < nodes.size(); ++r) {
    SHOAL_ASSIGN(const uint64_t rest, RestOf(nodes[r], spec, plan.ranks[r]));
    // When nothing is said: a quarter of the memory, and an eighth of the rest is left to the buffers of a step.
    const uint64_t wanted = flags.kv_memory != 0 ? flags.kv_memory : std::min(nodes[r].memory / 4, rest - rest / 8);
    shares[r].kv_budget = std::min(wanted, rest);
    block_bytes.push_back(KvBlockBytes(spec, plan.ranks[r], plan.kv_type));
    least = std::max(least, block_bytes.back());
  }
  if (flags.kv_memory != 0 && flags.kv_memory < least)
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "--kv-memory " + std::to_string(flags.kv_memory) + " holds no block of " +
                    std::to_string(limits::kBlockTokens) +
                    " positions: with this model and split it must be at least " + std::to_string(least) + " bytes");
  SHOAL_RETURN_IF_ERROR(SizeKvPool(plan, ModelFacts(spec), shares, block_bytes, {flags.sequences}));
  return plan;
}

}  // namespace shoal
