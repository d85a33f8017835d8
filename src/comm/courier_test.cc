#include "comm/courier.h"

#include <gtest/gtest.h>

#include <future>
#include <new>
#include <vector>

#include "comm/local.h"
#include "core/reasons.h"

namespace shoal {
namespace {

TEST(Courier, ErrandsAreDoneInOrderWhileTheirGiverGoesOn) {
  Courier courier;
  std::promise<void> go;
  std::vector<int> order;
  const Courier::Errand first = [&] {
    go.get_future().wait();
    order.push_back(1);
    return Status{};
  };
  const Courier::Errand second = [&] {
    order.push_back(2);
    return Status{};
  };
  courier.Start(first);
  courier.Start(second);
  go.set_value();  // the giver is not held up by an errand that waits for it
  EXPECT_TRUE(courier.Await());
  EXPECT_TRUE(courier.Await());
  EXPECT_EQ(order, (std::vector{1, 2}));
}

TEST(Courier, EveryErrandHasItsOwnOutcome) {
  Courier courier;
  const Courier::Errand good = [] { return Status{}; };
  const Courier::Errand bad = [] { return Fail(Code::kUnavailable, reasons::kPeerLost, "gone"); };
  for (int round = 0; round < 3; ++round) {
    courier.Start(bad);
    courier.Start(good);
    EXPECT_EQ(courier.Await().error().reason, reasons::kPeerLost);
    courier.Start(bad);
    EXPECT_TRUE(courier.Await());
    EXPECT_EQ(courier.Await().error().reason, reasons::kPeerLost);
  }
}

TEST(Courier, WhatWasGivenIsDoneBeforeItEnds) {
  int done = 0;
  const Courier::Errand count = [&] {
    ++done;
    return Status{};
  };
  {
    Courier courier;
    for (int i = 0; i < Courier::kMost; ++i) courier.Start(count);
  }
  EXPECT_EQ(done, Courier::kMost);
}

TEST(Courier, AnErrandThatThrowsHasFailedAndTheNextIsDone) {
  Courier courier;
  const Courier::Errand throws = []() -> Status { throw std::bad_alloc(); };
  const Courier::Errand good = [] { return Status{}; };
  courier.Start(throws);
  courier.Start(good);
  EXPECT_EQ(courier.Await().error().reason, reasons::kOutOfMemory);
  EXPECT_TRUE(courier.Await());
}

TEST(Courier, AMeetingThatNobodyElseComesToEndsWhenTheCollectiveIsClosed) {
  auto links = MakeLocalGroup(2);
  links[0]->SetDeadline({Time::max()});
  Courier courier;
  std::promise<void> comes;
  const Courier::Errand meet = [&] {
    comes.set_value();
    return links[0]->Barrier();
  };
  courier.Start(meet);
  comes.get_future().wait();
  links[0]->Close();
  EXPECT_EQ(courier.Await().error().reason, reasons::kGroupClosed);
}

}  // namespace
}  // namespace shoal
