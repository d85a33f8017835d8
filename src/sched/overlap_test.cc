#include "sched/overlap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace shoal {
namespace {

// A link and processors: what a step of so many rows takes, whole and in parts.
struct Machines {
  double compute = 1000;   // ns a row
  double travel = 0;       // ns a row that its sums travel
  double cutting = 5'000;  // ns that parts cost a step more
  double growth = 0;       // ns that a row costs more with each step: the sequence gets longer

  // One step; its outcome as 'P' (in parts) or '.'.
  char Step(OverlapChoice& choice, int rows = 256) {
    const bool in_parts = choice.Choose(rows);
    const double work = (compute + growth * steps++) * rows, away = travel * rows;
    const double meeting = in_parts ? std::max(away - work, 0.0) + away / 8 : away;
    const double total = work + meeting + (in_parts ? cutting : 0);
    choice.Observe(rows, in_parts, static_cast<int64_t>(total), static_cast<int64_t>(meeting));
    return in_parts ? 'P' : '.';
  }
  std::string Steps(OverlapChoice& choice, int count, int rows = 256) {
    std::string out;
    for (int i = 0; i < count; ++i) out += Step(choice, rows);
    return out;
  }
  int steps = 0;
};

TEST(OverlapChoice, NothingIsTriedWhereNobodyWaits) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 80};  // 7 % of the time
  EXPECT_EQ(machines.Steps(choice, 100), std::string(100, '.'));
  EXPECT_EQ(choice.ToString(), "off, waits 7 %");
}

TEST(OverlapChoice, IsKeptWhereItPays) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 600};
  EXPECT_EQ(machines.Steps(choice, 3), ".P.");
  EXPECT_EQ(choice.ToString(), "off, waits 38 %, trial 2 of 4");
  EXPECT_EQ(machines.Steps(choice, 2), ".P");
  EXPECT_EQ(choice.ToString(), "on, waits 38 %, rests 32");
  EXPECT_EQ(machines.Steps(choice, 32), std::string(32, 'P'));
  EXPECT_EQ(machines.Steps(choice, 4), ".PP.") << "is that still so?";
  EXPECT_EQ(choice.ToString(), "on, waits 38 %, rests 64");
  const std::string later = machines.Steps(choice, 10'000);
  EXPECT_LE(std::ranges::count(later, '.'), 30);
}

TEST(OverlapChoice, IsLeftWhereItDoesNotPay) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 300, .cutting = 90'000};
  EXPECT_EQ(machines.Steps(choice, 5), ".P..P");
  EXPECT_EQ(choice.ToString(), "off, waits 23 %, rests 64");
  const std::string later = machines.Steps(choice, 10'000);
  EXPECT_LE(std::ranges::count(later, 'P'), 30) << "tried ever more rarely";
  EXPECT_GE(std::ranges::count(later, 'P'), 10) << "and tried again";
}

TEST(OverlapChoice, BeginningTakesMoreThanGoingOn) {
  // Parts save 2 %: too little to begin with, enough to go on.
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 150, .cutting = 27'500};
  (void)machines.Steps(choice, 5);
  EXPECT_TRUE(choice.ToString().starts_with("off")) << choice.ToString();
  machines.travel = 600;
  (void)machines.Steps(choice, 100);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
  machines.travel = 150;
  (void)machines.Steps(choice, 200);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
  machines.cutting = 36'000;  // now they cost a little
  (void)machines.Steps(choice, 300);
  EXPECT_TRUE(choice.ToString().starts_with("off")) << choice.ToString();
}

TEST(OverlapChoice, FollowsALinkThatChanges) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 600};
  (void)machines.Steps(choice, 60);
  EXPECT_EQ(machines.Step(choice), 'P');
  machines.travel = 20;
  machines.cutting = 20'000;
  (void)machines.Steps(choice, 80);
  EXPECT_EQ(machines.Steps(choice, 100), std::string(100, '.'));
  EXPECT_EQ(choice.ToString(), "off, waits 2 %");
  machines.travel = 600;
  (void)machines.Steps(choice, 20);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
}

TEST(OverlapChoice, RowsThatCostMoreAndMoreDecideNothing) {
  // Parts are a little slower here, each step dearer than the one before.
  OverlapChoice slower(Overlap::kAuto);
  Machines machines{.travel = 200, .cutting = 60'000, .growth = 100};
  (void)machines.Steps(slower, 5);
  EXPECT_TRUE(slower.ToString().starts_with("off")) << slower.ToString();
  OverlapChoice faster(Overlap::kAuto);
  machines = {.travel = 200, .cutting = 0, .growth = 100};
  (void)machines.Steps(faster, 5);
  EXPECT_TRUE(faster.ToString().starts_with("on")) << faster.ToString();
}

TEST(OverlapChoice, SmallStepsAreNeverCutAndTeachNothing) {
  for (const Overlap mode : {Overlap::kAuto, Overlap::kOn}) {
    OverlapChoice choice(mode);
    Machines machines{.travel = 5000};
    EXPECT_EQ(machines.Steps(choice, 20, OverlapChoice::kLeastRows - 1), std::string(20, '.'));
    EXPECT_EQ(choice.ToString(), mode == Overlap::kOn ? "on" : "off");
  }
}

TEST(OverlapChoice, DoesAsItIsTold) {
  Machines machines{.travel = 5000};
  OverlapChoice on(Overlap::kOn), off(Overlap::kOff);
  EXPECT_EQ(machines.Steps(on, 100, OverlapChoice::kLeastRows), std::string(100, 'P'));
  EXPECT_EQ(machines.Steps(off, 100), std::string(100, '.'));
}

TEST(OverlapChoice, StepsInFlightMayComeBackLate) {
  OverlapChoice choice(Overlap::kAuto);
  choice.Observe(256, false, 1000, 500);
  std::string chosen;
  for (int i = 0; i < 6; ++i) chosen += choice.Choose(256) ? 'P' : '.';
  EXPECT_EQ(chosen, "P..P..");
  for (const char step : chosen) choice.Observe(256, step == 'P', step == 'P' ? 700 : 1000, 100);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
}

TEST(OverlapChoice, TimesThatCannotBeAreLeftOut) {
  OverlapChoice choice(Overlap::kAuto);
  choice.Observe(256, false, 0, 0);
  choice.Observe(256, false, 100, -1);
  EXPECT_EQ(choice.ToString(), "off");
  choice.Observe(256, false, 100, 200);
  EXPECT_EQ(choice.ToString(), "off, waits 100 %");
}

}  // namespace
}  // namespace shoal
