#include "sched/overlap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <string>
#include <utility>
#include <vector>

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

TEST(OverlapChoice, NeitherWayIsLeftForALittle) {
  // Parts save 2 %: too little to begin with.
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
  machines.cutting = 36'000;  // now they cost a little: too little to leave them
  (void)machines.Steps(choice, 300);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
  machines.cutting = 60'000;
  (void)machines.Steps(choice, 1000);
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

// Parts do not matter here: whole or not, a step costs so much and so much a row.
int64_t Cost(int rows) { return 200'000 + 1000 * rows; }

// Steps of the rows in `pattern`, over and over; their outcome.
std::string Repeat(OverlapChoice& choice, const std::vector<int>& pattern, int steps) {
  std::string out;
  for (int i = 0; i < steps; ++i) {
    const int rows = pattern[static_cast<size_t>(i) % pattern.size()];
    const bool in_parts = choice.Choose(rows);
    choice.Observe(rows, in_parts, Cost(rows), Cost(rows) / 4);
    out += in_parts ? 'P' : '.';
  }
  return out;
}

TEST(OverlapChoice, OnlyLikeStepsAreCompared) {
  // A row of a short step costs a third more. Whatever place of the pattern the trials begin at: never the one way because the
  // other had the short steps.
  const std::vector<std::vector<int>> patterns = {{256, 256, 256, 132}, {132, 256, 256, 256},     {256, 132},
                                                  {256, 132, 132},      {256, 64, 200, 132, 100}, {256, 250, 70, 240}};
  for (const auto& pattern : patterns)
    for (int shift = 0; shift < 4; ++shift) {
      OverlapChoice choice(Overlap::kAuto);
      (void)Repeat(choice, {256}, shift);
      const std::string steps = Repeat(choice, pattern, 20'000);
      EXPECT_GT(std::ranges::count(steps, 'P'), 0) << "it was tried";
      EXPECT_EQ(steps.find("PPP"), std::string::npos) << ::testing::PrintToString(pattern) << shift;
      EXPECT_TRUE(choice.ToString().starts_with("off")) << choice.ToString();
    }
}

TEST(OverlapChoice, ATrialWaitsForLikeStepsAndNotForEver) {
  OverlapChoice choice(Overlap::kAuto);
  EXPECT_EQ(Repeat(choice, {256}, 2), ".P");
  EXPECT_EQ(Repeat(choice, {128}, 3), "...");
  EXPECT_EQ(choice.ToString(), "off, waits 25 %, trial 1 of 4");
  EXPECT_EQ(Repeat(choice, {231, 281, 230}, 3), "...") << "two like the first, one not";
  EXPECT_EQ(choice.ToString(), "off, waits 25 %, trial 3 of 4");
  EXPECT_EQ(Repeat(choice, {128}, OverlapChoice::kMostStrangers - 4),
            std::string(OverlapChoice::kMostStrangers - 4, '.'));
  EXPECT_EQ(choice.ToString(), "off, waits 25 %, trial 3 of 4");
  EXPECT_EQ(Repeat(choice, {128}, 1), ".");
  EXPECT_EQ(choice.ToString(), "off, waits 25 %, rests 31");
  EXPECT_EQ(Repeat(choice, {128}, 32), std::string(31, '.') + "P") << "and is tried again";
}

// Steps that take the same whole or in parts, but for noise of so many thousandths up or down; how often the choice changes.
int ChangesByNoise(bool on, int noise) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 600};
  if (on) (void)machines.Steps(choice, 5);
  EXPECT_EQ(choice.ToString().starts_with("on"), on);
  uint32_t random = 1;
  int changes = 0;
  for (int i = 0; i < 50'000; ++i) {
    const bool in_parts = choice.Choose(256);
    random = random * 1664525 + 1013904223;
    const int64_t ns = 1'000'000 + 1000 * (static_cast<int64_t>(random >> 8) % (2 * noise + 1) - noise);
    choice.Observe(256, in_parts, ns, ns / 4);
    const bool now = choice.ToString().starts_with("on");
    changes += now != on;
    on = now;
  }
  return changes;
}

TEST(OverlapChoice, NoiseChangesNothingOrSeldom) {
  for (const bool on : {false, true}) {
    EXPECT_EQ(ChangesByNoise(on, 14), 0) << "two steps never differ from two others by the margin";
    EXPECT_LE(ChangesByNoise(on, 60), 50) << "one in a thousand";
  }
}

TEST(OverlapChoice, ChangesSoonAfterAChangeComeEverMoreRarely) {
  // Whatever is done, the other way is faster in the trial.
  OverlapChoice choice(Overlap::kAuto);
  int changes = 0;
  bool on = false;
  for (int i = 0; i < 4 * OverlapChoice::kMostPatience; ++i) {
    const bool in_parts = choice.Choose(256);
    choice.Observe(256, in_parts, in_parts == on ? 1000 : 500, 250);
    const bool now = choice.ToString().starts_with("on");
    changes += now != on;
    on = now;
  }
  EXPECT_EQ(changes, 8);
}

TEST(OverlapChoice, AfterAQuietTimeAChangeIsLookedAtSoon) {
  OverlapChoice choice(Overlap::kAuto);
  Machines machines{.travel = 600};
  (void)machines.Steps(choice, 5 + 36 + 68);
  EXPECT_EQ(choice.ToString(), "on, waits 38 %, rests 128");
  machines.travel = 20;
  machines.cutting = 60'000;
  (void)machines.Steps(choice, 132);
  EXPECT_TRUE(choice.ToString().ends_with("rests 32")) << choice.ToString();
}

TEST(OverlapChoice, StepsInFlightMayComeBackLate) {
  OverlapChoice choice(Overlap::kAuto);
  (void)choice.Choose(256);
  choice.Observe(256, false, 1000, 500);
  std::string chosen;
  for (int i = 0; i < 6; ++i) chosen += choice.Choose(256) ? 'P' : '.';
  EXPECT_EQ(chosen, "P..P..");
  for (const char step : chosen) choice.Observe(256, step == 'P', step == 'P' ? 700 : 1000, 100);
  EXPECT_TRUE(choice.ToString().starts_with("on")) << choice.ToString();
}

TEST(OverlapChoice, StepsFromBeforeATrialAreNotCounted) {
  // Four under way, as with four stages. Those chosen before the trial are by far the slowest, and whole.
  OverlapChoice choice(Overlap::kAuto);
  std::deque<bool> under_way;
  const auto choose = [&] { under_way.push_back(choice.Choose(256)); };
  const auto observe = [&](int64_t ns) {
    choice.Observe(256, under_way.front(), ns, 250);
    under_way.pop_front();
  };
  for (int i = 0; i < 4; ++i) choose();
  observe(1000);
  for (int i = 0; i < 3; ++i) {
    choose();  // the trial's first three
    observe(100'000);
  }
  EXPECT_EQ(choice.ToString(), "off, waits 11 %, trial 3 of 4");
  for (int i = 0; i < 8; ++i) {
    choose();
    observe(1000);
  }
  EXPECT_TRUE(choice.ToString().starts_with("off")) << choice.ToString();
  EXPECT_TRUE(choice.ToString().find("rests") != std::string::npos) << choice.ToString();
}

TEST(OverlapChoice, TimesThatCannotBeAreLeftOut) {
  OverlapChoice choice(Overlap::kAuto);
  choice.Observe(256, false, 0, 0);
  choice.Observe(256, false, 100, -1);
  EXPECT_EQ(choice.ToString(), "off");
  choice.Observe(256, false, 100, 200);
  EXPECT_EQ(choice.ToString(), "off, waits 100 %");
}

TEST(OverlapChoice, ATimeThatCannotBeEndsATrial) {
  for (const auto& [ns, meeting] : {std::pair<int64_t, int64_t>{0, 0}, {100, -1}}) {
    OverlapChoice choice(Overlap::kAuto);
    Machines machines{.travel = 600};
    EXPECT_EQ(machines.Steps(choice, 3), ".P.");
    choice.Observe(256, choice.Choose(256), ns, meeting);
    EXPECT_EQ(choice.ToString(), "off, waits 38 %, rests 32");
    EXPECT_EQ(machines.Steps(choice, 37), std::string(32, '.') + "P..PP") << "and is made again";
  }
}

}  // namespace
}  // namespace shoal
