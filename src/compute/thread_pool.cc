#include "compute/thread_pool.h"

#include <system_error>

#include "base/check.h"
#include "base/log.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace shoal {
namespace {

constexpr int kSpins = 400;  // some 10 us
constexpr int kYields = 20;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until value is no longer `old`.
void AwaitChange(const std::atomic<int>& value, int old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    std::this_thread::yield();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  SHOAL_CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
  } catch (const std::system_error& e) {  // results do not depend on their number
    Log().warn("computing with {} threads instead of {}: {}", workers_.size() + 1, threads, e.what());
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  round_.fetch_add(1);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::Work(int ith) {
  for (int seen = 0;;) {
    AwaitChange(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    (*job_)(ith, threads());
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

void ThreadPool::Run(const Job& job) {
  if (workers_.empty()) return job(0, 1);
  job_ = &job;
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_acq_rel);
  round_.notify_all();
  job(0, threads());
  for (int left = running_.load(std::memory_order_acquire); left != 0; left = running_.load(std::memory_order_acquire))
    AwaitChange(running_, left);
}

void ThreadGate::Wait(int nth) {
  if (nth == 1) return;
  const int round = round_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == nth) {
    waiting_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  AwaitChange(round_, round);
}

}  // namespace shoal
