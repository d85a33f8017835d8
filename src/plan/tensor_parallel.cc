#include "plan/tensor_parallel.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {

Result<ShardPlan> PlanTensorParallel(const PlanModel& model, const std::vector<PlanNode>& nodes) {
  const int ranks = static_cast<int>(nodes.size());
  if (ranks < 1 || ranks > limits::kMaxRanks)
    return Fail(
        Code::kInvalidArgument, reasons::kBadShares,
        "a model is split over 1 to " + std::to_string(limits::kMaxRanks) + " workers, not " + std::to_string(ranks));
  std::vector<double> weights;
  for (const auto& node : nodes) {
    if (!(node.weight > 0 && node.weight < 1e9))
      return Fail(Code::kInvalidArgument, reasons::kBadShares,
                  "the share of " + node.name + " must be a positive number");
    weights.push_back(node.weight);
  }
  ShardPlan plan;
  for (const SliceRun run : ShareSlices(weights)) plan.ranks.push_back({run, 0, model.layers});
  plan.reasons.push_back("tensor parallel over " + std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks") +
                         ", slices by the nodes' weights");
  if (ranks > model.useful_ranks)
    plan.reasons.push_back("the model has work for " + std::to_string(model.useful_ranks) +
                           " ranks in every layer; the others idle in some");
  return plan;
}

Status SizeKvPool(ShardPlan& plan, const PlanModel& model, const std::vector<PlanNode>& nodes,
                  const std::vector<uint64_t>& block_bytes, PoolWish wish) {
  SHOAL_CHECK(nodes.size() == plan.ranks.size() && block_bytes.size() == plan.ranks.size());
  const int64_t per_context = CeilDiv(model.context, limits::kBlockTokens);
  int64_t blocks = per_context * std::max(1, wish.sequences);
  for (size_t r = 0; r < nodes.size(); ++r) {
    if (block_bytes[r] == 0) continue;  // a rank without heads keeps no cache
    const auto fits = static_cast<int64_t>(nodes[r].kv_budget / block_bytes[r]);
    if (fits < blocks) {
      blocks = fits;
      plan.reasons.push_back("the KV pool is bounded by the memory of " + nodes[r].name);
    }
  }
  if (blocks < 1)
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                "no node may be without memory for one block of KV cache");
  plan.kv_blocks = static_cast<int>(std::min<int64_t>(blocks, 1 << 24));
  plan.reasons.push_back("KV pool of " + std::to_string(plan.kv_blocks) +
                         " blocks = " + std::to_string(int64_t{plan.kv_blocks} * limits::kBlockTokens) + " positions");
  return {};
}

}  // namespace shoal
