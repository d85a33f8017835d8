#include "compute/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>

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
