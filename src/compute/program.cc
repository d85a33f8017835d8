#include "compute/program.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "base/check.h"
#include "core/reasons.h"

namespace shoal {
namespace {

// Multiplications that take one thread some microseconds: below that, waking another costs more than it saves.
constexpr int64_t kWorthSharing = 1 << 18;

Error ErrorOf(std::exception_ptr exception) noexcept {
  try {
    try {
      std::rethrow_exception(exception);
    } catch (const std::bad_alloc&) {
      return MakeError(Code::kResourceExhausted, reasons::kOutOfMemory, "not enough memory for this step");
    } catch (const std::exception& e) {
      return MakeError(Code::kInternal, reasons::kInternal, "a step cannot be computed", e.what());
    } catch (...) {
      return MakeError(Code::kInternal, reasons::kInternal, "a step cannot be computed");
    }
  } catch (...) {  // not even enough memory to say so
    return {Code::kResourceExhausted, reasons::kOutOfMemory, {}, {}, {}};
  }
}

}  // namespace

void Program::Add(Workers workers, Operation operation, int64_t work_per_row) {
  Add(workers, std::move(operation), [work_per_row](int rows) { return work_per_row * rows; });
}

void Program::Add(Workers workers, Operation operation, Work work) {
  steps_.push_back({.workers = workers, .operation = std::move(operation), .work = std::move(work)});
}

void Program::AddMeeting(Partners partners, Meeting meeting) {
  auto guarded = [meeting = std::move(meeting)]() -> Status {
    try {
      return meeting();
    } catch (...) {
      return Fail(ErrorOf(std::current_exception()));
    }
  };
  steps_.push_back({.meeting = std::move(guarded), .partners = partners});
}

void Program::RunGuarded(const Operation& operation, int ith, int nth) noexcept {
  try {
    operation(ith, nth);
  } catch (...) {
    failure_.Set(ErrorOf(std::current_exception()));
  }
}

size_t Program::RunToMeeting(size_t at, int rows) {
  for (; at < steps_.size() && !steps_[at].meeting && !failure_.failed(); ++at) {
    const Step& step = steps_[at];
    const bool alone = step.workers == Workers::kOne || step.work(rows) < kWorthSharing;
    const auto job = [this, &step](int ith, int nth) { RunGuarded(step.operation, ith, nth); };
    switch (alone ? Workers::kOne : step.workers) {
      case Workers::kOne:
        job(0, 1);
        break;
      case Workers::kAll:
        pool_.Run(job);
        break;
      case Workers::kDealt:
        pool_.Deal(job);
        break;
    }
  }
  return at;
}

Status Program::Run(int rows) {
  waits_ = {};
  for (size_t at = 0;; ++at) {
    at = RunToMeeting(at, rows);
    if (failure_.failed()) return Fail(failure_.error());
    if (at == steps_.size()) return {};
    const Time begin = Now();
    Status met = steps_[at].meeting();
    waits_.of(steps_[at].partners) += Now() - begin;
    SHOAL_RETURN_IF_ERROR(met);
  }
}

// One of the programs that run in turns.
class Program::Turn {
 public:
  Turn(const Part& part, Courier& courier) : program_(*part.program), rows_(part.rows), courier_(courier) {
    program_.waits_ = {};
  }

  bool meets() const { return meets_; }
  // Comes back from its meeting, if it is in one, and computes up to the next, for which it sends the courier.
  Status Take() {
    if (meets_) SHOAL_RETURN_IF_ERROR(Return());
    at_ = program_.RunToMeeting(at_, rows_);
    if (program_.failure_.failed()) return Fail(program_.failure_.error());
    if (at_ == program_.steps_.size()) return {};
    courier_.Start(program_.steps_[at_].meeting);
    meets_ = true;
    return {};
  }
  Status Return() {
    const Time begin = Now();
    Status met = courier_.Await();
    program_.waits_.of(program_.steps_[at_].partners) += Now() - begin;
    meets_ = false;
    ++at_;
    return met;
  }

 private:
  Program& program_;
  const int rows_;
  Courier& courier_;
  size_t at_ = 0;
  bool meets_ = false;
};

Status Program::RunInTurns(std::span<const Part> parts, Courier& courier, const std::function<void()>& give_up) {
  SHOAL_CHECK(parts.size() <= Courier::kMost);
  std::vector<Turn> turns;
  for (const Part& part : parts) turns.emplace_back(part, courier);
  const auto end = [&] {
    give_up();
    for (Turn& turn : turns)
      if (turn.meets()) (void)turn.Return();
  };
  Status status;
  try {
    do {
      for (Turn& turn : turns)
        if (status) status = turn.Take();
    } while (status && std::ranges::any_of(turns, &Turn::meets));
  } catch (...) {  // not even enough memory to say what failed: no errand stays out
    end();
    throw;
  }
  if (!status) end();
  return status;
}

}  // namespace shoal
