#include "compute/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace shoal {
namespace {

// YaRN: the (fractional) index of the pair that makes `turns` full turns over the original context.
double PairOfTurns(const RopeSpec& spec, double turns) {
  return spec.dims * std::log(spec.original_context / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(double{spec.base}));
}

}  // namespace

RopeTable::RopeTable(const RopeSpec& spec, std::span<const float> factors)
    : kind_(spec.kind), magnitude_(spec.magnitude) {
  if (kind_ == RopeKind::kNone) return;
  const auto half = static_cast<size_t>(spec.dims / 2);
  double low = 0, high = 0;
  const bool yarn = spec.scaling == RopeScaling::kYarn && spec.extrapolation != 0;
  if (yarn) {
    low = std::max(0.0, std::floor(PairOfTurns(spec, spec.beta_fast)));
    high = std::min(spec.dims - 1.0, std::ceil(PairOfTurns(spec, spec.beta_slow)));
  }
  ratio_ = std::pow(spec.base, -2.0f / static_cast<float>(spec.dims));
  for (size_t i = 0; i < half; ++i) {
    float mix = 0;
    if (yarn) {
      // Pairs that turn fast keep their frequency, slow ones are stretched, those between are mixed.
      const double ramp = 1 - std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
      mix = static_cast<float>(ramp * spec.extrapolation);
    }
    stretch_.push_back(spec.frequency_scale * (1 - mix) + mix);
  }
  divisors_.assign(factors.begin(), factors.end());
}

void RopeTable::Resize(size_t rows) {
  if (cos_.size() >= rows * half()) return;
  cos_.resize(rows * half());
  sin_.resize(rows * half());
}

void RopeTable::Fill(size_t row, int position) {
  float* cosine = cos_.data() + row * half();
  float* sine = sin_.data() + row * half();
  // The angles are a product carried from pair to pair, as the reference makes them: at f16 keys another rounding of the
  // angle is another key.
  float turn = static_cast<float>(position);
  for (size_t i = 0; i < half(); ++i) {
    const float angle = (divisors_.empty() ? turn : turn / divisors_[i]) * stretch_[i];
    cosine[i] = std::cos(angle) * magnitude_;
    sine[i] = std::sin(angle) * magnitude_;
    turn *= ratio_;
  }
}

}  // namespace shoal
