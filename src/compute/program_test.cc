#include "compute/program.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <new>
#include <stdexcept>
#include <string>

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
    program.Add(Workers::kDealt, note, 1 << 30);
    program.Add(Workers::kDealt, note, 1);
    ASSERT_TRUE(program.Run(1));
    EXPECT_EQ(order, (std::vector{0, 1, 2, 3, 4}));
    EXPECT_EQ(calls, 3 + threads + (threads == 1 ? 1 : threads * ThreadPool::kPartsEach));
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

// Three programs of three operations and two meetings; each writes down what it does.
class ProgramTurns : public ::testing::Test {
 protected:
  struct Part {
    Part(ProgramTurns& test, ThreadPool& pool, std::string name) : program(pool, failure) {
      for (const char* at : {"0", "1", "2"}) {
        program.Add(Workers::kOne, [&test, this, what = name + at](int, int) {
          test.computed += what + " ";
          if (what == test.fails) failure.Set(MakeError(Code::kInternal, reasons::kOutOfMemory, what));
        });
        if (*at != '2')
          program.AddMeeting(Partners::kStage, [&test, what = name + at]() -> Status {
            test.met += what + " ";
            if (what == test.throws) throw std::bad_alloc();
            if (what == test.lost) return Fail(Code::kUnavailable, reasons::kPeerLost, what);
            return {};
          });
      }
    }
    StepFailure failure;
    Program program;
  };
  Status Run() {
    const Program::Part parts[] = {{&a.program, 1}, {&b.program, 1}, {&c.program, 1}};
    return Program::RunInTurns(parts, courier, [this] { ++given_up; });
  }

  ThreadPool pool{1};
  Courier courier;
  Part a{*this, pool, "a"}, b{*this, pool, "b"}, c{*this, pool, "c"};
  std::string computed, met;
  std::string fails, throws, lost;
  int given_up = 0;
};

TEST_F(ProgramTurns, OneComputesWhileOthersMeet) {
  for (int round = 0; round < 3; ++round) {
    computed.clear();
    met.clear();
    ASSERT_TRUE(Run());
    EXPECT_EQ(computed, "a0 b0 c0 a1 b1 c1 a2 b2 c2 ");
    EXPECT_EQ(met, "a0 b0 c0 a1 b1 c1 ");
  }
  EXPECT_EQ(given_up, 0);
}

TEST_F(ProgramTurns, TheFirstFailureEndsAll) {
  lost = "a0";
  auto status = Run();
  EXPECT_EQ(status.error().reason, reasons::kPeerLost);
  EXPECT_EQ(computed, "a0 b0 c0 ");
  EXPECT_EQ(given_up, 1);

  lost.clear();
  throws = "b1";
  EXPECT_EQ(Run().error().reason, reasons::kOutOfMemory);
  EXPECT_EQ(given_up, 2);

  throws.clear();
  fails = "b1";
  met.clear();
  EXPECT_EQ(Run().error().message, "b1");
  EXPECT_EQ(met, "a0 b0 c0 a1 ");  // what was under way has ended before Run does
  EXPECT_EQ(given_up, 3);

  fails.clear();
  a.failure.Clear();
  b.failure.Clear();
  EXPECT_TRUE(Run());
}

TEST_F(ProgramTurns, AMeetingUnderWayIsGivenUpWhenAnOperationFails) {
  std::promise<void> end;
  bool ended = false;
  Program meets(pool, a.failure), breaks(pool, b.failure);
  meets.AddMeeting(Partners::kStage, [&]() -> Status {
    ended = end.get_future().wait_for(std::chrono::minutes(1)) == std::future_status::ready;
    return Fail(Code::kUnavailable, reasons::kGroupClosed, "closed");
  });
  breaks.Add(Workers::kOne, [](int, int) { throw std::bad_alloc(); });
  const Program::Part parts[] = {{&meets, 1}, {&breaks, 1}};
  const auto status = Program::RunInTurns(parts, courier, [&] { end.set_value(); });
  EXPECT_EQ(status.error().reason, reasons::kOutOfMemory);
  EXPECT_TRUE(ended) << "nobody ended it";
}

TEST_F(ProgramTurns, ProgramsWithoutMeetingsRunOneAfterTheOther) {
  Program first(pool, a.failure), second(pool, b.failure);
  first.Add(Workers::kOne, [&](int, int) { computed += "first "; });
  second.Add(Workers::kOne, [&](int, int) { computed += "second "; });
  const Program::Part parts[] = {{&first, 1}, {&second, 1}};
  EXPECT_TRUE(Program::RunInTurns(parts, courier, [] {}));
  EXPECT_EQ(computed, "first second ");
}

}  // namespace
}  // namespace shoal
