// What: decides whether a big step is computed in parts (core/overlap.h), from the time that earlier ones took. Parts pay
// where ranks wait for a network, and cost a little where they do not: each part reads all weights, and sums travel in smaller
// pieces. So nothing is tried before big steps spend kWorthwhile of their time in meetings; then the other way is tried in a trial
// of four steps, in the order other, this, this, other (rows cost more the longer their sequence is: so neither way has the
// longer ones). Whichever took less time a row is kept; to begin with parts, they have to save more than kMargin. A trial is
// repeated after kPatience big steps, and, where it confirms what is done, ever more rarely.
// Owns: a few sums. Threads: none. Pure: times come in as values.
// Limits: O(1). Steps of fewer than kLeastRows rows are never cut: each part reads all weights.
// Fails: never; Observe leaves out what makes no sense.
// Reads next: sched/scheduler.h, compute/parts.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/overlap.h"

namespace shoal {

class OverlapChoice {
 public:
  static constexpr int kLeastRows = 64;
  static constexpr double kWorthwhile = 0.1;
  static constexpr double kMargin = 0.03;
  static constexpr int kPatience = 32, kMostPatience = 1024;

  explicit OverlapChoice(Overlap mode) : mode_(mode), on_(mode == Overlap::kOn) {}

  // Whether the next step, which has so many rows, is to be computed in parts.
  bool Choose(int rows);
  // What a step took, and how long of that the rank was in meetings.
  void Observe(int rows, bool in_parts, int64_t step_ns, int64_t meeting_ns);

  // "off, waits 31 %, trial 2 of 4".
  std::string ToString() const;

 private:
  static constexpr int kTrialSteps = 4;
  struct Trial {
    int chosen = 0;             // of its steps
    int back[2] = {0, 0};       // [in parts] steps whose time is known
    double row_ns[2] = {0, 0};  // their sum
  };
  void End(const Trial& trial);

  Overlap mode_;
  bool on_;
  std::optional<double> waits_;  // share of the time of whole steps that was spent in meetings: a moving mean
  std::optional<Trial> trial_;
  int patience_ = kPatience;
  int rest_ = 0;  // big steps until the next trial
};

}  // namespace shoal
