// What: how long a waiting rank polls before it sleeps. While it polls it yields: the rank it waits for may need this very
// core, and two ranks that sleep and wake each other tend to end up on one. But on a machine with other work a yield costs a turn
// of everybody else, while a sleeper is woken at once; and a peer that has more to compute outlasts any polling. So where
// waits turn out long, polling is cut to a moment without yielding, and tried again ever more rarely.
#pragma once

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace shoal {

class SpinBudget {
 public:
  explicit SpinBudget(Nanos most) : most_(most), now_(most) {}
  Nanos now() const { return now_; }
  bool yields() const { return now_ > kShort; }

  // After every wait: how long it took, asleep or not.
  void Learn(Nanos waited) {
    if (waited > most_) {
      good_ = 0;
      misses_ += waited > 20 * most_ ? kMisses / 4 : 1;
      if (misses_ < kMisses) return;
      if (now_ == most_) patience_ = std::min(2 * patience_, 4096);
      now_ = std::min(most_, kShort);
    } else if (now_ == most_) {
      misses_ = 0;
      patience_ = kPatience;
    } else if (++good_ >= patience_) {  // on probation: one miss ends it
      now_ = most_;
      good_ = 0;
      misses_ = kMisses - 1;
    }
  }

 private:
  static constexpr Nanos kShort = std::chrono::microseconds(2);
  static constexpr int kMisses = 16;
  static constexpr int kPatience = 32;
  Nanos most_;
  Nanos now_;
  int misses_ = 0;
  int good_ = 0;
  int patience_ = kPatience;
};

}  // namespace shoal
