// What: a step's work as a list of operations, run one after the other. One whose work is worth it is shared out over the
// rank's threads, the others are done by the calling thread (docs/decisions/0002).
// Owns: the operations; the threads are the caller's.
// Threads: Run from one thread at a time. Inside an operation (ith, nth) share the work; all nth threads run it at once.
// Fails: an operation reports failure in the StepFailure; those after it are then skipped. One that throws has failed: an
// exception never leaves the thread it came up on.
// Reads next: compute/forward.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/result.h"
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

class Program {
 public:
  using Operation = std::function<void(int ith, int nth)>;
  Program(ThreadPool& pool, StepFailure& failure) : pool_(pool), failure_(failure) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // work_per_row: about how many multiplications a row of the step costs; little work is not shared out.
  void Add(Workers workers, Operation operation, int64_t work_per_row = 1 << 12);
  Status Run(int rows);

 private:
  struct Step {
    Operation operation;
    int64_t work_per_row = 0;  // 0: one thread does it
  };
  void RunGuarded(const Operation& operation, int ith, int nth);

  ThreadPool& pool_;
  StepFailure& failure_;
  std::vector<Step> steps_;
};

}  // namespace shoal
