// What: rotary positions: the cosines and sines of a step's rows, made once a step and shared by all layers.
// Source: RoPE (Su et al. 2021), YaRN (Peng et al. 2023).
// Threads: Fill may be called for different rows at once.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/model_spec.h"

namespace shoal {

class RopeTable {
 public:
  RopeTable() = default;
  // factors: empty, or spec.dims / 2 divisors of the frequencies.
  RopeTable(const RopeSpec& spec, std::span<const float> factors);

  RopeKind kind() const { return kind_; }
  size_t half() const { return stretch_.size(); }
  // cos and sin of row `row` lie at row * half().
  void Resize(size_t rows);
  void Fill(size_t row, int position);
  const float* cos(size_t row) const { return cos_.data() + row * half(); }
  const float* sin(size_t row) const { return sin_.data() + row * half(); }

 private:
  RopeKind kind_ = RopeKind::kNone;
  float magnitude_ = 1;
  float ratio_ = 1;             // of a pair's frequency to that of the pair before; the first turns a radian a position
  std::vector<float> stretch_;  // each pair's frequency is times this
  std::vector<float> divisors_;  // and divided by this; empty: by one
  std::vector<float> cos_, sin_;
};

}  // namespace shoal
