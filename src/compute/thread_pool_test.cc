#include "compute/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

namespace shoal {
namespace {

TEST(ThreadPool, EveryPartRunsOnceAndRunReturnsAfterAll) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<int> seen(static_cast<size_t>(threads), 0);
    for (int round = 0; round < 500; ++round)
      pool.Run([&](int ith, int nth) {
        EXPECT_EQ(nth, threads);
        ++seen[static_cast<size_t>(ith)];  // one writer each; Run orders them with this thread
      });
    EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(threads), 500));
  }
}

TEST(ThreadPool, EveryDealtPartRunsOnceAlsoBetweenJobsOfTheOtherKind) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    const size_t parts = threads == 1 ? 1 : static_cast<size_t>(threads * ThreadPool::kPartsEach);
    std::vector<int> dealt(parts, 0), together(static_cast<size_t>(threads), 0);
    for (int round = 0; round < 500; ++round) {
      pool.Deal([&](int ith, int nth) {
        EXPECT_EQ(static_cast<size_t>(nth), parts);
        ++dealt[static_cast<size_t>(ith)];
      });
      if (round % 3 == 0) pool.Run([&](int ith, int) { ++together[static_cast<size_t>(ith)]; });
    }
    EXPECT_EQ(dealt, std::vector<int>(parts, 500));
    EXPECT_EQ(together, std::vector<int>(static_cast<size_t>(threads), 167));
  }
}

TEST(ThreadPool, OthersDoThePartsThatASlowThreadHasNotBegun) {
  constexpr int kThreads = 3, kParts = kThreads * ThreadPool::kPartsEach;
  ThreadPool pool(kThreads);
  for (const int slow : {0, ThreadPool::kPartsEach, kParts - 1}) {
    std::atomic<int> done = 0;
    bool others_done = false;
    pool.Deal([&](int ith, int) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (ith == slow && done < kParts - 1 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      if (ith == slow) others_done = done == kParts - 1;
      ++done;
    });
    EXPECT_TRUE(others_done) << "part " << slow;
    EXPECT_EQ(done, kParts);
  }
}

TEST(ThreadPool, ThreadsMeetAtAGate) {
  constexpr int kThreads = 4, kRounds = 200;
  ThreadPool pool(kThreads);
  ThreadGate gate;
  std::vector<int> written(kThreads, 0);
  std::vector<int> wrong(kThreads, 0);
  pool.Run([&](int ith, int nth) {
    for (int round = 1; round <= kRounds; ++round) {
      written[static_cast<size_t>(ith)] = round;
      gate.Wait(nth);
      wrong[static_cast<size_t>(ith)] += std::accumulate(written.begin(), written.end(), 0) != round * kThreads;
      gate.Wait(nth);
    }
  });
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

}  // namespace
}  // namespace shoal
