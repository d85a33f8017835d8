#include "plan/split.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {

namespace {

std::unexpected<Error> Bad(std::string what) {
  return Fail(Code::kInvalidArgument, reasons::kBadShares, std::move(what));
}

// Ends of the stages' layers, so that the largest of (layers of a stage) / (its weight) is as small as can be; every stage has
// at least one. least[s][l]: that largest value when the first s stages have the first l layers.
std::vector<int> ShareLayers(const PlanModel& model, const std::vector<double>& weights) {
  const size_t stages = weights.size(), layers = static_cast<size_t>(model.layers);
  const double never = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> least(stages + 1, std::vector<double>(layers + 1, never));
  std::vector<std::vector<size_t>> begin(stages + 1, std::vector<size_t>(layers + 1, 0));
  least[0][0] = 0;
  for (size_t s = 1; s <= stages; ++s) {
    const double extra = s == stages ? model.output_cost : 0;
    for (size_t l = s; l <= layers; ++l)
      for (size_t from = s - 1; from < l; ++from) {
        const double cost = (static_cast<double>(l - from) + extra) / weights[s - 1];
        const double largest = std::max(least[s - 1][from], cost);
        if (largest >= least[s][l]) continue;
        least[s][l] = largest;
        begin[s][l] = from;
      }
  }
  std::vector<int> ends(stages);
  for (size_t s = stages, l = layers; s > 0; l = begin[s][l], --s) ends[s - 1] = static_cast<int>(l);
  return ends;
}

}  // namespace

Result<ShardPlan> PlanSplit(const PlanModel& model, const std::vector<PlanNode>& nodes, int stages) {
  const int ranks = static_cast<int>(nodes.size());
  if (ranks < 1 || ranks > limits::kMaxRanks)
    return Bad("a model is split over 1 to " + std::to_string(limits::kMaxRanks) + " workers, not " +
               std::to_string(ranks));
  if (stages < 1 || stages > std::min(ranks, model.layers))
    return Bad(std::to_string(stages) + " stages cannot be made of " + std::to_string(ranks) + " workers and " +
               std::to_string(model.layers) + " layers");
  for (const auto& node : nodes)
    if (!(node.weight > 0 && node.weight < 1e9)) return Bad("the share of " + node.name + " must be a positive number");

  std::vector<std::vector<double>> weights;  // [stage][rank in it]
  std::vector<double> stage_weights;
  for (int s = 0; s < stages; ++s) {
    auto& own = weights.emplace_back();
    for (int r = s * ranks / stages; r < (s + 1) * ranks / stages; ++r)
      own.push_back(nodes[static_cast<size_t>(r)].weight);
    stage_weights.push_back(std::accumulate(own.begin(), own.end(), 0.0));
  }
  const std::vector<int> ends = ShareLayers(model, stage_weights);
  ShardPlan plan;
  for (size_t s = 0; s < weights.size(); ++s)
    for (const SliceRun run : ShareSlices(weights[s])) plan.ranks.push_back({run, s == 0 ? 0 : ends[s - 1], ends[s]});

  const auto counted = [](int count, const char* what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
  };
  if (stages > 1)
    plan.reasons.push_back("pipeline of " + counted(stages, "stage") +
                           ", layers by the nodes' weights and the cost of the logits");
  if (stages < ranks || ranks == 1)
    plan.reasons.push_back("tensor parallel over " + counted(static_cast<int>(CeilDiv(ranks, stages)), "rank") +
                           (stages > 1 ? " a stage" : "") + ", slices by the nodes' weights");
  if (CeilDiv(ranks, stages) > model.useful_ranks)
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
    if (fits < 1)
      return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                  nodes[r].name + " has no memory for one block of KV cache",
                  std::to_string(block_bytes[r]) + " bytes, of which it has " + std::to_string(nodes[r].kv_budget));
    if (fits < blocks) {
      blocks = fits;
      plan.reasons.push_back("the KV pool is bounded by the memory of " + nodes[r].name);
    }
  }
  plan.kv_blocks = static_cast<int>(std::min<int64_t>(blocks, 1 << 24));
  plan.reasons.push_back("KV pool of " + std::to_string(plan.kv_blocks) +
                         " blocks = " + std::to_string(int64_t{plan.kv_blocks} * limits::kBlockTokens) + " positions");
  return {};
}

}  // namespace shoal
