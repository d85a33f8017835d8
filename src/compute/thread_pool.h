// What: the compute threads of one rank. They share out one job at a time; between jobs they spin for some microseconds
// (the next one is usually there by then), then give way, then sleep: an idle rank uses no processor, and more ranks
// than cores still run. A job that is dealt does not wait for a slow thread (a small core, one that another program is on).
// Owns: threads - 1 threads; the caller is the other one. Fewer where the system gives no more.
// Threads: Run and Deal from one thread at a time. A job must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace shoal {

class ThreadPool {
 public:
  using Job = std::function<void(int ith, int nth)>;
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Runs job(i, threads()) for each i at the same time; returns when all are done. Waits for every thread.
  void Run(const Job& job) { Share(job, 1); }
  // Runs job(i, n) for each i of n = threads() * kPartsEach. A thread does neighbouring parts, then those that others have not
  // begun; one that does not come at all is not waited for. Parts must not wait for each other.
  static constexpr int kPartsEach = 4;
  void Deal(const Job& job) { Share(job, kPartsEach); }

 private:
  // The parts that one thread begins with. Who takes one holds the job: it is not over before this part is.
  struct Hand {
    uint32_t round;  // of the job
    int16_t each;    // parts that every thread begins with; 1: each thread must do its own
    int16_t left;    // parts that nobody has taken
  };
  struct alignas(64) HandSlot {
    std::atomic<Hand> hand;
  };
  static_assert(std::atomic<Hand>::is_always_lock_free);

  void Share(const Job& job, int each);
  void Work(int ith);
  void Play(int ith, uint32_t round);
  bool TakeFrom(int owner, uint32_t round);

  std::unique_ptr<HandSlot[]> hands_;
  std::vector<std::thread> workers_;
  const Job* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_ = 0;  // a new number: there is a job
  alignas(64) std::atomic<uint32_t> open_ = 0;   // parts that are not done; apart from what idle threads look at
  std::atomic<bool> stop_ = false;
};

// A meeting point inside a job: all nth threads must come.
class ThreadGate {
 public:
  void Wait(int nth);

 private:
  std::atomic<int> waiting_ = 0;
  std::atomic<uint32_t> round_ = 0;
};

}  // namespace shoal
