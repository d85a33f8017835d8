#include "compute/program.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

#include "core/reasons.h"

namespace shoal {
namespace {

TEST(Program, OperationsRunInOrderAndOnlyWorkThatIsWorthItIsShared) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    StepFailure failure;
    Program program(pool, failure);
    std::vector<int> order;
    std::atomic<int> calls = 0;
    const auto note = [&](int ith, int) {
      if (ith == 0) order.push_back(static_cast<int>(order.size()));
      ++calls;
    };
    program.Add(Workers::kOne, note, 1 << 30);
    program.Add(Workers::kAll, note, 1 << 30);
    program.Add(Workers::kAll, note, 1);
    ASSERT_TRUE(program.Run(1));
    EXPECT_EQ(order, (std::vector{0, 1, 2}));
    EXPECT_EQ(calls, 2 + threads);
  }
}

TEST(Program, AFailureSkipsTheRestAndAnExceptionIsOne) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    StepFailure failure;
    Program program(pool, failure);
    int what = 0;
    bool after = false;
    program.Add(
        Workers::kAll,
        [&](int ith, int nth) {
          if (ith != nth - 1) return;
          if (what == 1) throw std::bad_alloc();
          if (what == 2) throw std::length_error("too long");
          if (what == 3) failure.Set(MakeError(Code::kUnavailable, reasons::kPeerLost, "gone"));
        },
        1 << 30);
    program.Add(Workers::kOne, [&](int, int) { after = true; });
    const auto run = [&](int now) {
      what = now;
      after = false;
      failure.Clear();
      return program.Run(1);
    };
    EXPECT_TRUE(run(0));
    EXPECT_TRUE(after);
    EXPECT_EQ(run(1).error().reason, reasons::kOutOfMemory);
    EXPECT_FALSE(after);
    EXPECT_EQ(run(2).error().reason, reasons::kInternal);
    EXPECT_EQ(run(3).error().reason, reasons::kPeerLost);
    EXPECT_FALSE(after);
    EXPECT_TRUE(run(0));
  }
}

}  // namespace
}  // namespace shoal
