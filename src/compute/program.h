// What: a step's work as a list of operations and meetings, run one after the other. An operation whose work is worth it is
// shared out over the rank's threads, the others are done by the calling thread (docs/decisions/0002). In a meeting nothing is
// computed: two programs that work on different rows can run in turns, so that one computes while the other meets.
// Owns: the operations; the threads are the caller's.
// Threads: Run from one thread at a time. Inside an operation (ith, nth) share the work; all nth threads run it at once. In
// turns, a meeting runs on the courier's thread, beside operations of the other program.
// Fails: an operation reports failure in the StepFailure, a meeting returns it; those after it are then skipped. One that throws
// has failed: an exception never leaves the thread it came up on.
// Reads next: compute/forward.h, comm/courier.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "comm/courier.h"
#include "compute/thread_pool.h"

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
  kOne,  // one thread does it: meetings, and what is too small to share
  kAll,  // shared by all threads
};

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

  // work_per_row: about how many multiplications a row of the step costs; little work is not shared out.
  void Add(Workers workers, Operation operation, int64_t work_per_row = 1 << 12);
  void AddMeeting(Partners partners, Meeting meeting);
  Status Run(int rows);
  // Of the last run.
  const StepWaits& waits() const { return waits_; }

  // Runs two programs with the same meetings in turns:
  //
  //     computes   first ▓▓▓▓  second ▓▓▓▓  first ▓▓▓▓  second ▓▓▓▓ ...
  //     courier               first ······  second ······ ...
  //
  // Whatever `first` does before a meeting is done before `second` begins what it does before its own. Meetings come in this
  // order on every rank. The first failure ends both; `give_up` then ends a meeting that is under way.
  static Status RunInTurns(Program& first, int first_rows, Program& second, int second_rows, Courier& courier,
                           const std::function<void()>& give_up);

 private:
  struct Step {
    Operation operation;
    int64_t work_per_row = 0;  // 0: one thread does it
    Meeting meeting = {};      // instead of an operation
    Partners partners = Partners::kStage;
  };
  class Turn;
  void RunGuarded(const Operation& operation, int ith, int nth);
  // From step `at` up to the next meeting, the end or a failure; where that is.
  size_t RunToMeeting(size_t at, int rows);

  ThreadPool& pool_;
  StepFailure& failure_;
  std::vector<Step> steps_;
  StepWaits waits_;
};

}  // namespace shoal
