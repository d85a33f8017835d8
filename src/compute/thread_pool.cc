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
void AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
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
  hands_ = std::make_unique<HandSlot[]>(static_cast<size_t>(threads));
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
  for (uint32_t seen = 0;;) {
    AwaitChange(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    Play(ith, seen);
  }
}

// Own parts, then those of the next threads.
void ThreadPool::Play(int ith, uint32_t round) {
  for (int i = 0; i < threads(); ++i)
    if (!TakeFrom((ith + i) % threads(), round)) return;
}

// Does all parts that are left in this hand. False: there is nothing to do in other hands.
bool ThreadPool::TakeFrom(int owner, uint32_t round) {
  std::atomic<Hand>& place = hands_[static_cast<size_t>(owner)].hand;
  for (Hand hand = place.load(std::memory_order_acquire);;) {
    if (hand.round != round) return false;  // this thread was late: the job is over
    if (hand.left == 0) return hand.each > 1;
    if (!place.compare_exchange_weak(hand, {hand.round, hand.each, static_cast<int16_t>(hand.left - 1)},
                                     std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    (*job_)(owner* hand.each + hand.each - hand.left, threads() * hand.each);
    if (open_.fetch_sub(1, std::memory_order_acq_rel) == 1) open_.notify_one();
    hand = place.load(std::memory_order_acquire);
  }
}

void ThreadPool::Share(const Job& job, int each) {
  if (workers_.empty()) return job(0, 1);
  job_ = &job;
  open_.store(static_cast<uint32_t>(threads() * each), std::memory_order_relaxed);
  const uint32_t round = round_.load(std::memory_order_relaxed) + 1;
  for (int i = 0; i < threads(); ++i)
    hands_[static_cast<size_t>(i)].hand.store({round, static_cast<int16_t>(each), static_cast<int16_t>(each)},
                                              std::memory_order_release);
  round_.store(round);  // in one order with a sleeper's entry: it is woken, or sees the number
  round_.notify_all();
  Play(0, round);
  for (uint32_t open = open_.load(std::memory_order_acquire); open != 0; open = open_.load(std::memory_order_acquire))
    AwaitChange(open_, open);
}

void ThreadGate::Wait(int nth) {
  if (nth == 1) return;
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == nth) {
    waiting_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  AwaitChange(round_, round);
}

}  // namespace shoal
