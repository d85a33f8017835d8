#include "core/step.h"

namespace shoal {

std::string ToString(const StepPlan& plan) {
  std::string text = "step " + std::to_string(plan.step);
  for (SequenceId id : plan.removed) text += " -" + std::to_string(id);
  for (const auto& start : plan.added)
    text += " +" + std::to_string(start.id) + "(" + std::to_string(start.tokens.size()) + ")";
  for (const auto& chunk : plan.chunks) {
    text += " " + std::to_string(chunk.id) + "[" + std::to_string(chunk.first) + "," +
            std::to_string(chunk.first + chunk.count) + ")";
    for (BlockId block : chunk.new_blocks) text += "b" + std::to_string(block);
    if (chunk.sample) text += "*";
    if (!chunk.draft.empty()) text += "?" + std::to_string(chunk.draft.size());
  }
  if (plan.overlap) text += " overlap";
  return text;
}

std::string ToString(const StepResult& result) {
  std::string text = "result " + std::to_string(result.step);
  for (const auto& token : result.tokens)
    text += " " + std::to_string(token.id) + "@" + std::to_string(token.position) + "=" + std::to_string(token.token);
  return text;
}

}  // namespace shoal
