// What: the compute threads of one rank. They share out one job at a time; between jobs they spin for some microseconds
// (the next one is usually there by then), then give way, then sleep: an idle rank uses no processor, and more ranks
// than cores still run.
// Owns: threads - 1 threads; the caller is the other one. Fewer where the system gives no more.
// Threads: Run from one thread at a time. A job must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
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
  // Runs job(i, threads()) for each i at the same time; returns when all are done.
  void Run(const Job& job);

 private:
  void Work(int ith);

  std::vector<std::thread> workers_;
  const Job* job_ = nullptr;
  std::atomic<int> round_ = 0;    // a new number: there is a job
  std::atomic<int> running_ = 0;  // workers that have not finished it
  std::atomic<bool> stop_ = false;
};

// A meeting point inside a job: all nth threads must come.
class ThreadGate {
 public:
  void Wait(int nth);

 private:
  std::atomic<int> waiting_ = 0;
  std::atomic<int> round_ = 0;
};

}  // namespace shoal
