#include "sched/overlap.h"

#include <algorithm>
#include <format>

namespace shoal {
namespace {

constexpr double kLearn = 0.25;  // weight of the newest step in the mean

}  // namespace

bool OverlapChoice::Choose(int rows) {
  if (rows < kLeastRows) return false;
  if (mode_ != Overlap::kAuto) return on_;
  if (!trial_ && rest_ == 0 && waits_ && (on_ || *waits_ > kWorthwhile)) trial_.emplace();
  if (!trial_ || trial_->chosen == kTrialSteps) return on_;
  const int step = trial_->chosen++;
  return step == 0 || step == kTrialSteps - 1 ? !on_ : on_;
}

void OverlapChoice::Observe(int rows, bool in_parts, int64_t step_ns, int64_t meeting_ns) {
  if (rows < kLeastRows || step_ns < 1 || meeting_ns < 0) return;
  const auto ns = static_cast<double>(step_ns);
  if (!in_parts) {
    const double share = std::min(1.0, static_cast<double>(meeting_ns) / ns);
    waits_ = waits_ ? *waits_ + kLearn * (share - *waits_) : share;
  }
  if (!trial_) {
    rest_ = std::max(0, rest_ - 1);
    return;
  }
  ++trial_->back[in_parts];
  trial_->row_ns[in_parts] += ns / rows;
  if (trial_->back[0] >= kTrialSteps / 2 && trial_->back[1] >= kTrialSteps / 2) End(*trial_);
}

void OverlapChoice::End(const Trial& trial) {
  const double now = trial.row_ns[on_] / trial.back[on_], other = trial.row_ns[!on_] / trial.back[!on_];
  if (other < (on_ ? now : (1 - kMargin) * now)) {
    on_ = !on_;
    patience_ = kPatience;
  } else {
    patience_ = std::min(2 * patience_, kMostPatience);
  }
  rest_ = patience_;
  trial_.reset();
}

std::string OverlapChoice::ToString() const {
  std::string text = on_ ? "on" : "off";
  if (waits_) text += std::format(", waits {:.0f} %", 100 * *waits_);
  if (trial_) return text + std::format(", trial {} of {}", trial_->chosen, kTrialSteps);
  if (rest_ > 0) text += std::format(", rests {}", rest_);
  return text;
}

}  // namespace shoal
