#include "app/planning.h"

#include <algorithm>
#include <cstdio>

#include "compute/executor.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "plan/split.h"

namespace shoal {
namespace {

uint64_t BytesOf(const TensorRef& tensor) { return tensor ? tensor.row_bytes * static_cast<uint64_t>(tensor.rows) : 0; }

// Where a model's bytes lie.
struct Weights {
  uint64_t begin = 0;  // what the first stage has beside its layers
  uint64_t end = 0;    // what the last one has; where it is the same tensor, a lone stage holds it once
  bool tied = false;
  double layer = 0;
};

Weights WeightsOf(const ModelSpec& spec) {
  Weights weights{.begin = BytesOf(spec.embedding) + BytesOf(spec.positions), .end = BytesOf(spec.output.weight)};
  weights.tied = spec.output.weight.tensor == spec.embedding.tensor;
  const uint64_t ends = weights.begin + (weights.tied ? 0 : weights.end);
  weights.layer = static_cast<double>(spec.tensor_bytes - std::min(ends, spec.tensor_bytes)) / spec.n_layers;
  return weights;
}

// Bytes stand for cost: decoding reads each weight once a step.
PlanModel ModelFacts(const ModelSpec& spec) {
  const Weights weights = WeightsOf(spec);
  const double output = weights.layer > 0 ? static_cast<double>(weights.end) / weights.layer : 0;
  return {spec.n_layers, spec.context_length, MaxUsefulRanks(spec), output};
}

uint64_t WeightBytes(const ModelSpec& spec, const RankShare& share) {
  const Weights weights = WeightsOf(spec);
  const bool first = share.first_layer == 0, last = share.last_layer == spec.n_layers;
  double bytes = weights.layer * (share.last_layer - share.first_layer);
  if (first) bytes += static_cast<double>(weights.begin);
  if (last && !(first && weights.tied)) bytes += static_cast<double>(weights.end);
  return static_cast<uint64_t>(bytes / kSlices * share.slices.size());
}

std::string Size(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

// What the rank's weights leave of its node's memory.
Result<uint64_t> RestOf(const NodeFacts& node, const ModelSpec& spec, const RankShare& share) {
  const uint64_t weights = WeightBytes(spec, share);
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
  for (size_t r = 0; r < nodes.size(); ++r) {
    SHOAL_ASSIGN(const uint64_t rest, RestOf(nodes[r], spec, plan.ranks[r]));
    // When nothing is said: a quarter of the memory, and an eighth of the rest is left to the buffers of a step.
    const uint64_t wanted = flags.kv_memory != 0 ? flags.kv_memory : std::min(nodes[r].memory / 4, rest - rest / 8);
    shares[r].kv_budget = std::min(wanted, rest);
    block_bytes.push_back(KvBlockBytes(spec, plan.ranks[r], plan.kv_type));
  }
  SHOAL_RETURN_IF_ERROR(SizeKvPool(plan, ModelFacts(spec), shares, block_bytes, {flags.sequences}));
  return plan;
}

}  // namespace shoal
