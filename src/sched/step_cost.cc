#include "sched/step_cost.h"

#include <algorithm>

namespace shoal {
namespace {

constexpr double kOlder = 0.98;   // weight of a step, per step since
constexpr double kPriorRows = 8;  // rows that cost as much as the base
constexpr double kSpread = 1e-3;  // relative variance of the rows below which no slope can be seen

}  // namespace

void StepCost::Observe(int rows, int64_t ns) {
  if (rows < 1 || ns < 1) return;
  const double x = rows, y = static_cast<double>(ns);
  const double weight = 1 / (y * y);  // the relative error counts, and a step that was held up does not
  weight_ = weight_ * kOlder + weight;
  rows_ = rows_ * kOlder + weight * x;
  rows2_ = rows2_ * kOlder + weight * x * x;
  ns_ = ns_ * kOlder + weight * y;
  rows_ns_ = rows_ns_ * kOlder + weight * x * y;
}

StepCost::Line StepCost::Fit() const {
  if (!known()) return {};
  const double mean_rows = rows_ / weight_, mean_ns = ns_ / weight_;
  const double variance = rows2_ / weight_ - mean_rows * mean_rows;
  if (variance < kSpread * mean_rows * mean_rows) {
    const double row = mean_ns / (mean_rows + kPriorRows);
    return {kPriorRows * row, row};
  }
  const double slope = (rows_ns_ / weight_ - mean_rows * mean_ns) / variance;
  // Neither a row nor a step is for nothing, whatever the noise says.
  const double row = std::clamp(slope, 0.01 * mean_ns / mean_rows, mean_ns / mean_rows);
  return {mean_ns - row * mean_rows, row};
}

double StepCost::Of(double rows) const {
  const Line line = Fit();
  return line.base + line.row * rows;
}

}  // namespace shoal
