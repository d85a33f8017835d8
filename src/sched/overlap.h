// What: decides whether a big step is computed in parts (core/overlap.h), from the time that earlier ones took. Parts pay
// where ranks wait for a network, and cost a little where they do not: each part reads all weights, and sums travel in smaller
// pieces. So nothing is tried before big steps spend kWorthwhile of their time in meetings; then the other way is tried in a trial
// of four steps, in the order other, this, this, other (rows cost more the longer their sequence is: so neither way has the
// longer ones). Like is compared with like: steps whose rows are not about as many as the first's are no part of the trial, and
// go on as before; a trial that finds too few like steps is dropped. The other way has to save more than kMargin of the time,
// whichever it is. A trial is repeated after kPatience big steps, and ever more rarely where it confirms what is done, or
// changes it soon after a change: then there is little between the two.
// Owns: a few sums. Threads: none. Pure: times come in as values.
// Limits: O(1). Steps of fewer than kLeastRows rows are never cut: each part reads all weights.
// It sees the times of one rank, the one that draws: what parts do for or against the stages before it stays unseen, and where
// the last stage is a lone rank, which has no meetings, nothing is ever tried.
// Fails: never. A time that makes no sense is left out, and ends a trial.
// Reads next: sched/scheduler.h, compute/parts.h.
#pragma once

#include <array>
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
  static constexpr double kAlike = 0.1;      // by how much the rows of a trial's steps may differ from the first's
  static constexpr int kMostStrangers = 16;  // steps that come in the middle of a trial and are not like its own
  static constexpr int kPatience = 32, kMostPatience = 1024;

  explicit OverlapChoice(Overlap mode) : mode_(mode), on_(mode == Overlap::kOn) {}

  // Whether the next step, which has so many rows, is to be computed in parts.
  bool Choose(int rows);
  // What a step took, and how long of that the rank was in meetings. Once for every Choose, in the same order; several steps may
  // be under way.
  void Observe(int rows, bool in_parts, int64_t step_ns, int64_t meeting_ns);

  // "off, waits 31 %, trial 2 of 4".
  std::string ToString() const;

 private:
  static constexpr int kTrialSteps = 4;
  static constexpr int kSettled = 2;  // trials that confirm a change: the next one is not soon after it
  struct Trial {
    int rows = 0;                               // of its first step
    std::array<uint64_t, kTrialSteps> steps{};  // their numbers
    int chosen = 0, back = 0;                   // of them
    int strangers = 0;
    double row_ns[2] = {0, 0};  // [in parts] sum over its steps
  };
  bool Alike(int rows) const;
  void Rest();
  void End(const Trial& trial);

  Overlap mode_;
  bool on_;
  uint64_t chosen_ = 0, observed_ = 0;  // steps; their numbers
  std::optional<double> waits_;         // share of the time of whole steps that was spent in meetings: a moving mean
  std::optional<Trial> trial_;
  int patience_ = kPatience;
  int confirmed_ = kSettled;  // trials since the last change
  int rest_ = 0;              // big steps until the next trial
};

}  // namespace shoal
