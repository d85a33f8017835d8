#include "comm/courier.h"

#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "core/reasons.h"

namespace shoal {
namespace {

// An exception, of an errand that had not even enough memory to say what failed, must not end the thread.
Status Do(const Courier::Errand& errand) {
  try {
    return errand();
  } catch (...) {
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory, {});  // a text could throw again
  }
}

}  // namespace

Courier::Courier() {
  try {
    thread_ = std::thread([this] { Work(); });
  } catch (const std::system_error& e) {
    Log().warn("meetings keep the rank from computing meanwhile: {}", e.what());
  }
}

Courier::~Courier() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  given_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Courier::Start(const Errand& errand) {
  const bool alone = !thread_.joinable();
  Status outcome;
  if (alone) outcome = Do(errand);
  {
    std::lock_guard lock(mutex_);
    SHOAL_CHECK(started_ - awaited_ < kMost);
    errands_[started_ % kMost] = &errand;
    outcomes_[started_ % kMost] = std::move(outcome);
    ++started_;
    if (alone) ++finished_;
  }
  given_.notify_one();
}

Status Courier::Await() {
  std::unique_lock lock(mutex_);
  SHOAL_CHECK(awaited_ < started_);
  done_.wait(lock, [this] { return finished_ > awaited_; });
  return std::move(outcomes_[awaited_++ % kMost]);
}

void Courier::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    given_.wait(lock, [this] { return stop_ || finished_ < started_; });
    if (finished_ == started_) return;
    const Errand& errand = *errands_[finished_ % kMost];
    lock.unlock();
    Status outcome = Do(errand);
    lock.lock();
    outcomes_[finished_ % kMost] = std::move(outcome);
    ++finished_;
    done_.notify_one();
  }
}

}  // namespace shoal
