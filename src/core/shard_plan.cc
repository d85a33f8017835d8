#include "core/shard_plan.h"

#include "base/check.h"
#include "core/reasons.h"

namespace shoal {

std::vector<Stage> StagesOf(const ShardPlan& plan) {
  std::vector<Stage> stages;
  for (int r = 0; r < plan.size(); ++r) {
    const RankShare& share = plan.ranks[static_cast<size_t>(r)];
    const bool same = !stages.empty() && stages.back().first_layer == share.first_layer &&
                      stages.back().last_layer == share.last_layer;
    if (!same) stages.push_back({r, 0, share.first_layer, share.last_layer});
    ++stages.back().ranks;
  }
  return stages;
}

ShardPlan StagePlan(const ShardPlan& plan, const Stage& stage) {
  const auto first = plan.ranks.begin() + stage.first_rank;
  return {{first, first + stage.ranks}, plan.kv_blocks, {}, plan.kv_type};
}

int DrawingRank(const ShardPlan& plan) {
  SHOAL_CHECK(plan.size() > 0);
  return StagesOf(plan).back().first_rank;
}

Status CheckShardPlan(const ShardPlan& plan, int layers) {
  const auto bad = [](const std::string& what) {
    return Fail(Code::kInvalidArgument, reasons::kBadShares,
                "the shares of the ranks do not make up the model: " + what);
  };
  if (plan.size() == 0) return bad("there are no ranks");
  int next_layer = 0;
  for (const Stage& stage : StagesOf(plan)) {
    if (stage.first_layer != next_layer || stage.last_layer <= stage.first_layer)
      return bad("layers " + std::to_string(stage.first_layer) + ".." + std::to_string(stage.last_layer) +
                 " do not follow layer " + std::to_string(next_layer));
    next_layer = stage.last_layer;
    int next_slice = 0;
    for (const RankShare& share : StagePlan(plan, stage).ranks) {
      if (share.slices.begin != next_slice || share.slices.end < share.slices.begin)
        return bad("slices " + std::to_string(share.slices.begin) + ".." + std::to_string(share.slices.end) +
                   " do not follow slice " + std::to_string(next_slice));
      next_slice = share.slices.end;
    }
    if (next_slice != kSlices) return bad("slices end at " + std::to_string(next_slice));
  }
  if (next_layer != layers)
    return bad("they end at layer " + std::to_string(next_layer) + " of " + std::to_string(layers));
  return {};
}

std::string ToString(const ShardPlan& plan) {
  std::string text;
  for (int r = 0; r < plan.size(); ++r) {
    const auto& share = plan.ranks[r];
    if (r > 0) text += "; ";
    text += "rank " + std::to_string(r) + ": layers " + std::to_string(share.first_layer) + ".." +
            std::to_string(share.last_layer) + ", slices " + std::to_string(share.slices.begin) + ".." +
            std::to_string(share.slices.end) + " of 16";
  }
  return text;
}

}  // namespace shoal
