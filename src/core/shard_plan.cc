#include "core/shard_plan.h"

namespace shoal {

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
