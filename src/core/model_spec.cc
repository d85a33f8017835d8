#include "core/model_spec.h"

#include <algorithm>

#include "core/slices.h"

namespace shoal {

int MaxUsefulRanks(const ModelSpec& spec) {
  int64_t units = spec.n_vocab;
  for (const auto& layer : spec.layers) {
    units = std::min<int64_t>(units, layer.heads);
    const int width = layer.experts ? spec.n_ff_expert : layer.n_ff;
    units = std::min<int64_t>(units, (width + 31) / 32);
  }
  return std::max(1, PresentSlices(units));
}

std::string Summary(const ModelSpec& spec) {
  std::string text = spec.arch + ", " + std::to_string(spec.n_layers) + " layers of " + std::to_string(spec.n_embd);
  if (!spec.layers.empty()) {
    const auto& layer = spec.layers.front();
    text += ", " + std::to_string(layer.heads) + " heads (" + std::to_string(layer.kv_heads) + " KV)";
    if (spec.mixture()) {
      text += ", " + std::to_string(spec.n_experts) + " experts (" + std::to_string(spec.n_experts_used) +
              " used) of " + std::to_string(spec.n_ff_expert);
    } else {
      text += ", FFN " + std::to_string(layer.n_ff);
    }
  }
  return text + ", vocabulary " + std::to_string(spec.n_vocab);
}

}  // namespace shoal
