// What: a step's work as a list of operations and meetings, run one after the other. An operation whose work is worth it is
// shared out over the rank's threads, the others are done by the calling thread (docs/decisions/0002). In a meeting nothing is
// computed: programs that work on different rows can run in turns, so that one computes while others meet.
// Owns: the operations; the threads are the caller's.
// Threads: Run from one thread at a time. Inside an operation (ith, nth) share the work; one for all workers is run by all nth
// threads at once. In turns, a meeting runs on the courier's thread, beside operations of the other programs.
// Fails: an operation reports failure in the StepFailure, a meeting returns it; those after it are then skipped. One that throws
// has failed: an exception never leaves the thread it came up on.
// Reads next: compute/forward.h, comm/courier.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "comm/courier.h"
#include "compute/thread_pool.h"
#include "core/slices.h"

namespace shoal {

// Where operations say that the step has failed; the first failure stays.
class StepFailure {
 public:
  void Set(Error error) {
    if (!failed_.exchange(true)) error_ = std::move(error);
  }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  void Clear() {
    failed_ = false;
    error_ = {};
  }
  const Error& error() const { return error_; }  // once no thread is inside an operation

 private:
  std::atomic<bool> failed_ = false;
  Error error_;
};

enum class Workers {
  kOne,    // one thread does it: it is too small to share
  kAll,    // shared by all threads: each does its part, all at the same time
  kDealt,  // shared in smaller parts that go to whoever is free: for work whose parts do not wait for each other
};

// The part of `count` things that thread ith of nth does.
inline UnitRange PartOf(int64_t count, int ith, int nth) { return {count * ith / nth, count * (ith + 1) / nth}; }

// Whom a meeting is with.
enum class Partners {
  kStage,   // the ranks that have the same layers
  kStages,  // the stages before and behind
};

// How long a step's meetings kept the calling thread from computing.
struct StepWaits {
  Nanos stage{};
  Nanos stages{};
  Nanos& of(Partners partners) { return partners == Partners::kStage ? stage : stages; }
  StepWaits& operator+=(const StepWaits& other) {
    stage += other.stage;
    stages += other.stages;
    return *this;
  }
};

class Program {
 public:
  using Operation = std::function<void(int ith, int nth)>;
  using Meeting = Courier::Errand;
  Program(ThreadPool& pool, StepFailure& failure) : pool_(pool), failure_(failure) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Work: about how many multiplications the step costs, so many a row or what a function says; little work is not shared out.
  using Work = std::function<int64_t(int rows)>;
  void Add(Workers workers, Operation operation, int64_t work_per_row = 1 << 12);
  void Add(Workers workers, Operation operation, Work work);
  void AddMeeting(Partners partners, Meeting meeting);
  Status Run(int rows);
  // Of the last run.
  const StepWaits& waits() const { return waits_; }

  // Runs programs with the same meetings in turns:
  //
  //     computes   a ▓▓▓▓  b ▓▓▓▓  a ▓▓▓▓  b ▓▓▓▓ ...
  //     courier            a ····  b ····  a ···· ...
  //
  // Whatever a program does before a meeting is done before those behind it begin what they do before theirs. Meetings come in
  // this order on every rank. The first failure ends all; `give_up` then ends a meeting that is under way.
  struct Part {
    Program* program = nullptr;
    int rows = 0;
  };
  static Status RunInTurns(std::span<const Part> parts, Courier& courier, const std::function<void()>& give_up);

 private:
  struct Step {
    Workers workers = Workers::kOne;
    Operation operation = {};
    Work work = {};
    Meeting meeting = {};  // instead of an operation
    Partners partners = Partners::kStage;
  };
  class Turn;
  void RunGuarded(const Operation& operation, int ith, int nth) noexcept;
  // From step `at` up to the next meeting, the end or a failure; where that is.
  size_t RunToMeeting(size_t at, int rows);

  ThreadPool& pool_;
  StepFailure& failure_;
  std::vector<Step> steps_;
  StepWaits waits_;
};

}  // namespace shoal
