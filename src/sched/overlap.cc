#include "sched/overlap.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <format>

namespace shoal {
namespace {

constexpr double kLearn = 0.25;  // weight of the newest step in the mean

}  // namespace

bool OverlapChoice::Choose(int rows) {
  const uint64_t step = chosen_++;
  if (rows < kLeastRows) return false;
  if (mode_ != Overlap::kAuto) return on_;
  if (!trial_ && rest_ == 0 && waits_ && (on_ || *waits_ > kWorthwhile)) trial_.emplace().rows = rows;
  if (!trial_ || trial_->chosen == kTrialSteps) return on_;
  if (!Alike(rows)) {
    if (++trial_->strangers > kMostStrangers) Rest();
    return on_;
  }
  const int place = trial_->chosen++;
  trial_->steps[static_cast<size_t>(place)] = step;
  return place == 0 || place == kTrialSteps - 1 ? !on_ : on_;
}

bool OverlapChoice::Alike(int rows) const { return std::abs(rows - trial_->rows) <= kAlike * trial_->rows; }

void OverlapChoice::Rest() {
  trial_.reset();
  rest_ = patience_;
}

void OverlapChoice::Observe(int rows, bool in_parts, int64_t step_ns, int64_t meeting_ns) {
  const uint64_t step = observed_++;
  if (rows < kLeastRows) return;
  if (step_ns < 1 || meeting_ns < 0) {
    if (trial_) Rest();
    return;
  }
  const auto ns = static_cast<double>(step_ns);
  if (!in_parts) {
    const double share = std::min(1.0, static_cast<double>(meeting_ns) / ns);
    waits_ = waits_ ? *waits_ + kLearn * (share - *waits_) : share;
  }
  if (!trial_) {
    rest_ = std::max(0, rest_ - 1);
    return;
  }
  // Chosen before the trial began, or not like its steps?
  if (trial_->back == trial_->chosen || trial_->steps[static_cast<size_t>(trial_->back)] != step) return;
  trial_->row_ns[in_parts] += ns / rows;
  if (++trial_->back == kTrialSteps) End(*trial_);
}

void OverlapChoice::End(const Trial& trial) {
  if (trial.row_ns[!on_] < (1 - kMargin) * trial.row_ns[on_]) {
    on_ = !on_;
    patience_ = confirmed_ >= kSettled ? kPatience : std::min(2 * patience_, kMostPatience);
    confirmed_ = 0;
  } else {
    patience_ = std::min(2 * patience_, kMostPatience);
    ++confirmed_;
  }
  Rest();
}

std::string OverlapChoice::ToString() const {
  std::string text = on_ ? "on" : "off";
  if (waits_) text += std::format(", waits {:.0f} %", 100 * *waits_);
  if (trial_) return text + std::format(", trial {} of {}", trial_->chosen, kTrialSteps);
  if (rest_ > 0) text += std::format(", rests {}", rest_);
  return text;
}

}  // namespace shoal
