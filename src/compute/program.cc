#include "compute/program.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "core/reasons.h"

namespace shoal {
namespace {

// Multiplications that take one thread some microseconds: below that, waking another costs more than it saves.
constexpr int64_t kWorthSharing = 1 << 18;

}  // namespace

void Program::Add(Workers workers, Operation operation, int64_t work_per_row) {
  const bool share = workers == Workers::kAll && pool_.threads() > 1;
  steps_.push_back({std::move(operation), share ? std::max<int64_t>(work_per_row, 1) : 0});
}

void Program::RunGuarded(const Operation& operation, int ith, int nth) {
  try {
    operation(ith, nth);
  } catch (const std::bad_alloc&) {
    failure_.Set(MakeError(Code::kResourceExhausted, reasons::kOutOfMemory, "not enough memory for this step"));
  } catch (const std::exception& e) {
    failure_.Set(MakeError(Code::kInternal, reasons::kInternal, "a step cannot be computed", e.what()));
  }
}

Status Program::Run(int rows) {
  for (const auto& [operation, work_per_row] : steps_) {
    if (work_per_row > 0 && work_per_row * rows >= kWorthSharing) {
      pool_.Run([this, &operation](int ith, int nth) { RunGuarded(operation, ith, nth); });
    } else {
      RunGuarded(operation, 0, 1);
    }
    if (failure_.failed()) return Fail(failure_.error());
  }
  return {};
}

}  // namespace shoal
