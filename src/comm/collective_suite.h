// What: the tests that every Collective back end passes. A back end names itself with a type that has
// `static std::vector<std::unique_ptr<Collective>> Make(int size)` (rank r at index r) and instantiates the
// suite:
//     INSTANTIATE_TYPED_TEST_SUITE_P(Local, CollectiveSuite, LocalBackEnd);
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "comm/collective.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "core/slices.h"

namespace shoal::testing {

using Ranks = std::vector<std::unique_ptr<Collective>>;

inline const Nanos kSoon = std::chrono::seconds(120);  // far more than any meeting takes, so that a hang fails

// Runs body(rank's collective) on one thread per rank.
inline void OnAllRanks(Ranks& ranks, const std::function<void(Collective&)>& body) {
  std::vector<std::thread> threads;
  for (auto& rank : ranks)
    threads.emplace_back([&] {
      rank->SetDeadline(Deadline::After(kSoon));
      body(*rank);
    });
  for (auto& thread : threads) thread.join();
}

inline void ExpectOk(const Status& status) { EXPECT_TRUE(status.has_value()) << ToString(status.error()); }
inline bool FailedWith(const Status& status, Reason reason) { return !status && status.error().reason == reason; }

// Slice s of element i, the same wherever it is computed.
inline float SliceValue(int slice, size_t i) {
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(slice) * 40503u + 12345u;
  x ^= x >> 15;
  x *= 2246822519u;
  x ^= x >> 13;
  return (static_cast<float>(x & 0xffffff) / 8388608.0f - 1.0f) * (1.0f + static_cast<float>(slice) * 0.37f);
}

// The sum of a subtree in the fixed order.
inline std::vector<float> SubtreeSum(Subtree tree, int64_t units, size_t n) {
  std::vector<std::pair<Subtree, std::vector<float>>> leaves;
  for (int s = tree.begin; s < tree.end(); ++s) {
    if (UnitsOf({s, s + 1}, units).count() == 0) continue;
    std::vector<float> leaf(n);
    for (size_t i = 0; i < n; ++i) leaf[i] = SliceValue(s, i);
    leaves.push_back({{s, 1}, std::move(leaf)});
  }
  return CombineSubtrees(std::move(leaves), [](std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  });
}

struct SumCase {
  std::vector<SliceRun> runs;
  int64_t units = 0;
  ReduceShares shares;
};

inline SumCase MakeSumCase(std::vector<SliceRun> runs, int64_t units) {
  SumCase made{std::move(runs), units, {}};
  for (const SliceRun& run : made.runs) made.shares.subtrees.push_back(MaximalSubtrees(run, units));
  return made;
}

inline std::vector<float> OwnSums(const SumCase& sum, int rank, size_t n) {
  std::vector<float> own;
  for (const Subtree& tree : sum.shares.subtrees[static_cast<size_t>(rank)]) {
    const auto values = SubtreeSum(tree, sum.units, n);
    own.insert(own.end(), values.begin(), values.end());
  }
  return own;
}

// Equal shares, lopsided ones, empty ones and few units, for `ranks` ranks.
inline std::vector<SumCase> SumCases(int ranks) {
  std::vector<SumCase> cases;
  cases.push_back(MakeSumCase(ShareSlices(std::vector<double>(static_cast<size_t>(ranks), 1.0)), 64));
  std::vector<double> weights(static_cast<size_t>(ranks), 1.0);
  weights[0] = 2.5;
  weights.back() += 0.6;
  cases.push_back(MakeSumCase(ShareSlices(weights), 40));
  cases.push_back(MakeSumCase(ShareSlices(weights), 3));  // most slices are absent, so most ranks bring nothing
  std::vector<SliceRun> empty(static_cast<size_t>(ranks), SliceRun{0, 0});
  empty.back() = {0, kSlices};  // one rank holds everything
  cases.push_back(MakeSumCase(std::move(empty), 64));
  return cases;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <class BackEnd>
class CollectiveSuite : public ::testing::Test {};

TYPED_TEST_SUITE_P(CollectiveSuite);

// For every number of ranks and every split the sum has the bits that one rank alone computes.
TYPED_TEST_P(CollectiveSuite, SumsHaveTheSameBitsForEverySplit) {
  std::map<std::pair<int64_t, size_t>, std::vector<float>> wanted;
  for (int size : {1, 2, 3, 4, 5, 8, 16}) {
    auto ranks = TypeParam::Make(size);
    for (const SumCase& sum : SumCases(size)) {
      for (size_t n : {0u, 1u, 7u, 1000u, 65536u}) {
        auto& whole = wanted[{sum.units, n}];
        if (whole.empty()) whole = SubtreeSum({0, kSlices}, sum.units, n);
        std::vector<std::vector<float>> own, out(static_cast<size_t>(size), std::vector<float>(n, -1.0f));
        for (int r = 0; r < size; ++r) own.push_back(OwnSums(sum, r, n));
        OnAllRanks(ranks, [&](Collective& rank) {
          const auto r = static_cast<size_t>(rank.rank());
          ExpectOk(rank.AllReduce(sum.shares, own[r], out[r]));
        });
        for (const auto& result : out) ASSERT_TRUE(SameBits(result, whole)) << size << " ranks, " << n << " floats";
      }
    }
  }
}

TYPED_TEST_P(CollectiveSuite, SumsOfAMillionFloats) {
  constexpr size_t kFloats = 1 << 20;
  for (int size : {2, 3, 5}) {
    auto ranks = TypeParam::Make(size);
    const auto sum = MakeSumCase(ShareSlices(std::vector<double>(static_cast<size_t>(size), 1.0)), 64);
    const auto whole = SubtreeSum({0, kSlices}, 64, kFloats);
    std::vector<std::vector<float>> own, out(static_cast<size_t>(size), std::vector<float>(kFloats));
    for (int r = 0; r < size; ++r) own.push_back(OwnSums(sum, r, kFloats));
    OnAllRanks(ranks, [&](Collective& rank) {
      const auto r = static_cast<size_t>(rank.rank());
      ExpectOk(rank.AllReduce(sum.shares, own[r], out[r]));
    });
    for (const auto& result : out) ASSERT_TRUE(SameBits(result, whole)) << size << " ranks";
  }
}

TYPED_TEST_P(CollectiveSuite, ReduceScatterGivesEveryRankItsPart) {
  for (int size : {1, 2, 3, 5, 16}) {
    auto ranks = TypeParam::Make(size);
    for (const SumCase& sum : SumCases(size)) {
      std::vector<size_t> counts;
      size_t n = 0;
      for (int r = 0; r < size; ++r) n += counts.emplace_back(r == 1 ? 0 : 100 + 37 * static_cast<size_t>(r));
      const auto whole = SubtreeSum({0, kSlices}, sum.units, n);
      std::vector<std::vector<float>> own, out;
      for (int r = 0; r < size; ++r) {
        own.push_back(OwnSums(sum, r, n));
        out.emplace_back(counts[static_cast<size_t>(r)]);
      }
      OnAllRanks(ranks, [&](Collective& rank) {
        const auto r = static_cast<size_t>(rank.rank());
        ExpectOk(rank.ReduceScatter(sum.shares, counts, own[r], out[r]));
      });
      std::vector<float> joined;
      for (const auto& part : out) joined.insert(joined.end(), part.begin(), part.end());
      ASSERT_TRUE(SameBits(joined, whole)) << size << " ranks";
    }
  }
}

inline std::vector<std::byte> Pattern(int from, size_t bytes) {
  std::vector<std::byte> pattern(bytes);
  for (size_t i = 0; i < bytes; ++i) pattern[i] = static_cast<std::byte>(i * 31 + static_cast<size_t>(from) * 97 + 5);
  return pattern;
}

TYPED_TEST_P(CollectiveSuite, GathersJoinUnequalParts) {
  for (int size : {1, 2, 3, 5, 16}) {
    auto ranks = TypeParam::Make(size);
    std::vector<size_t> counts;
    std::vector<std::byte> wanted;
    for (int r = 0; r < size; ++r) {
      const auto part = Pattern(r, counts.emplace_back(r % 3 == 1 ? 0 : 9'001 * static_cast<size_t>(r + 1)));
      wanted.insert(wanted.end(), part.begin(), part.end());
    }
    OnAllRanks(ranks, [&](Collective& rank) {
      const auto own = Pattern(rank.rank(), counts[static_cast<size_t>(rank.rank())]);
      std::vector<std::byte> out(wanted.size());
      ExpectOk(rank.AllGather(own, counts, out));
      EXPECT_TRUE(out == wanted);
      for (int root = 0; root < rank.size(); ++root) {
        std::vector<std::byte> at_root(root == rank.rank() ? wanted.size() : 0);
        ExpectOk(rank.Gather(root, own, counts, at_root));
        EXPECT_EQ(at_root, root == rank.rank() ? wanted : std::vector<std::byte>{});
      }
    });
  }
}

TYPED_TEST_P(CollectiveSuite, BroadcastReachesEveryone) {
  for (int size : {1, 2, 3, 5, 16}) {
    auto ranks = TypeParam::Make(size);
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{5000}, size_t{size <= 3 ? 3'000'000u : 70'000u}}) {
      const auto wanted = Pattern(1, bytes);
      OnAllRanks(ranks, [&](Collective& rank) {
        for (int root = 0; root < rank.size(); ++root) {
          auto buffer = rank.rank() == root ? wanted : std::vector<std::byte>(bytes);
          ExpectOk(rank.Broadcast(root, buffer));
          EXPECT_TRUE(buffer == wanted);
        }
      });
    }
  }
}

TYPED_TEST_P(CollectiveSuite, MessagesGoRoundARing) {
  for (int size : {2, 3, 5}) {
    auto ranks = TypeParam::Make(size);
    OnAllRanks(ranks, [&](Collective& rank) {
      const int to = (rank.rank() + 1) % rank.size(), from = (rank.rank() + rank.size() - 1) % rank.size();
      for (size_t bytes : {0u, 1u, 5000u, 5'000'000u}) {
        std::vector<std::byte> got(bytes);
        if (rank.rank() == 0) {  // somebody receives first, or long messages would wait for each other
          ExpectOk(rank.Receive(from, got));
          ExpectOk(rank.Send(to, Pattern(rank.rank(), bytes)));
        } else {
          ExpectOk(rank.Send(to, Pattern(rank.rank(), bytes)));
          ExpectOk(rank.Receive(from, got));
        }
        EXPECT_TRUE(got == Pattern(from, bytes));
      }
    });
  }
}

// The same random list of operations on every rank, many meetings one after the other.
TYPED_TEST_P(CollectiveSuite, ManyDifferentMeetingsInARow) {
  for (int size : {2, 3, 8}) {
    auto ranks = TypeParam::Make(size);
    const auto cases = SumCases(size);
    OnAllRanks(ranks, [&](Collective& rank) {
      std::mt19937 random(99);
      for (int i = 0; i < 150; ++i) {
        const size_t n = random() % 700;
        const int root = static_cast<int>(random()) % size;
        const auto at = static_cast<size_t>(root < 0 ? -root : root) % static_cast<size_t>(size);
        switch (random() % 4) {
          case 0:
            ExpectOk(rank.Barrier());
            break;
          case 1: {
            const SumCase& sum = cases[random() % cases.size()];
            auto own = OwnSums(sum, rank.rank(), n);
            std::vector<float> out(n);
            ExpectOk(rank.AllReduce(sum.shares, own, out));
            EXPECT_TRUE(SameBits(out, SubtreeSum({0, kSlices}, sum.units, n)));
            break;
          }
          case 2: {
            auto buffer = rank.rank() == static_cast<int>(at) ? Pattern(i, n) : std::vector<std::byte>(n);
            ExpectOk(rank.Broadcast(static_cast<int>(at), buffer));
            EXPECT_EQ(buffer, Pattern(i, n));
            break;
          }
          default: {
            std::vector<size_t> counts(static_cast<size_t>(size), 3);
            counts[at] = n;
            std::vector<std::byte> out(n + 3 * static_cast<size_t>(size - 1));
            ExpectOk(rank.AllGather(Pattern(rank.rank(), counts[static_cast<size_t>(rank.rank())]), counts, out));
            break;
          }
        }
      }
    });
  }
}

// A rank that goes away in mid-meeting: everyone else hears of it at once, and the group stays closed.
TYPED_TEST_P(CollectiveSuite, ALostRankEndsTheMeetingForAll) {
  for (int size : {2, 3, 8}) {
    auto ranks = TypeParam::Make(size);
    const auto sum = MakeSumCase(ShareSlices(std::vector<double>(static_cast<size_t>(size), 1.0)), 64);
    const int dead = size - 1;
    OnAllRanks(ranks, [&](Collective& rank) {
      auto own = OwnSums(sum, rank.rank(), 4096);
      std::vector<float> out(4096);
      ExpectOk(rank.AllReduce(sum.shares, own, out));
      if (rank.rank() == dead) {
        ranks[static_cast<size_t>(dead)].reset();
        return;
      }
      const Time start = Now();
      const Status status = rank.AllReduce(sum.shares, own, out);
      EXPECT_TRUE(FailedWith(status, reasons::kPeerLost)) << (status ? "no error" : ToString(status.error()));
      if (size == 2 && !status) {
        EXPECT_NE(status.error().message.find("rank 1"), std::string::npos);
      }
      EXPECT_LT(Now() - start, std::chrono::seconds(5));
      EXPECT_TRUE(FailedWith(rank.Barrier(), reasons::kGroupClosed));
      EXPECT_TRUE(FailedWith(rank.AllReduce(sum.shares, own, out), reasons::kGroupClosed));
    });
  }
}

TYPED_TEST_P(CollectiveSuite, ADeadlineEndsTheMeeting) {
  for (int size : {2, 3}) {
    auto ranks = TypeParam::Make(size);
    std::atomic<int> over = 0;
    OnAllRanks(ranks, [&](Collective& rank) {
      if (rank.rank() == 0) {  // stays away until the others have given up
        while (over.load() + 1 < size) std::this_thread::yield();
        return;
      }
      rank.SetDeadline(Deadline::After(std::chrono::milliseconds(30)));
      const Status status = rank.Barrier();
      // Who gives up first closes the group; the other may see that instead of its own deadline.
      EXPECT_TRUE(FailedWith(status, reasons::kPeerTimeout) || (size > 2 && FailedWith(status, reasons::kPeerLost)));
      EXPECT_TRUE(FailedWith(rank.Barrier(), reasons::kGroupClosed));
      ++over;
    });
  }
}

TYPED_TEST_P(CollectiveSuite, RanksThatDisagreeFindOut) {
  const auto mismatch = [](const std::function<Status(Collective&)>& meet) {
    auto ranks = TypeParam::Make(2);
    std::atomic<int> mismatches = 0;
    OnAllRanks(ranks, [&](Collective& rank) {
      const Status status = meet(rank);
      EXPECT_FALSE(status.has_value());
      if (FailedWith(status, reasons::kMeetingMismatch))
        ++mismatches;
      else
        EXPECT_TRUE(FailedWith(status, reasons::kPeerLost));
    });
    EXPECT_GE(mismatches.load(), 1);
  };
  const auto even = MakeSumCase(ShareSlices({1, 1}), 64), odd = MakeSumCase(ShareSlices({3, 1}), 64);
  mismatch([&](Collective& rank) {  // operations
    std::vector<size_t> counts{8, 8};
    std::vector<std::byte> own(8), out(16);
    return rank.rank() == 0 ? rank.AllGather(own, counts, out) : rank.Barrier();
  });
  mismatch([&](Collective& rank) {  // sizes
    const size_t n = rank.rank() == 0 ? 100 : 101;
    std::vector<float> own(n), out(n);
    return rank.AllReduce(even.shares, own, out);
  });
  mismatch([&](Collective& rank) {  // shares
    const SumCase& sum = rank.rank() == 0 ? even : odd;
    std::vector<float> own(10 * sum.shares.subtrees[static_cast<size_t>(rank.rank())].size()), out(10);
    return rank.AllReduce(sum.shares, own, out);
  });
  mismatch([&](Collective& rank) {  // counts
    std::vector<size_t> counts = rank.rank() == 0 ? std::vector<size_t>{8, 8} : std::vector<size_t>{9, 8};
    std::vector<std::byte> own(8), out(counts[0] + counts[1]);
    return rank.AllGather(own, counts, out);
  });
}

TYPED_TEST_P(CollectiveSuite, BadSharesAreRefused) {
  auto ranks = TypeParam::Make(1);
  std::vector<float> own(8), out(4);
  EXPECT_TRUE(FailedWith(ranks[0]->AllReduce({{{{0, 8}, {4, 4}}}}, own, out), reasons::kBadShares));
  for (const std::vector<Subtree>& trees :
       {std::vector<Subtree>{{3, 2}}, {{-4, 4}}, {{0, 32}}, {{0, 3}}, {}, {{16, 1}}}) {
    auto group = TypeParam::Make(1);
    EXPECT_TRUE(FailedWith(group[0]->AllReduce({{trees}}, own, out), reasons::kBadShares));
  }
}

TYPED_TEST_P(CollectiveSuite, CloseWakesAMeeting) {
  for (int round = 0; round < 20; ++round) {
    auto ranks = TypeParam::Make(2);
    ranks[0]->SetDeadline(Deadline::After(kSoon));
    std::thread closer([&] {
      if (round % 2 == 1) std::this_thread::yield();
      ranks[0]->Close();
    });
    const Time start = Now();
    const Status status = ranks[0]->Barrier();
    EXPECT_TRUE(FailedWith(status, reasons::kGroupClosed)) << (status ? "no error" : ToString(status.error()));
    EXPECT_LT(Now() - start, std::chrono::seconds(5));
    closer.join();
    // Rank 0 may have come to the barrier before it closed: then only the next meeting fails.
    Status other = ranks[1]->Barrier();
    if (other) other = ranks[1]->Barrier();
    EXPECT_TRUE(FailedWith(other, reasons::kPeerLost));
    EXPECT_TRUE(FailedWith(ranks[1]->Barrier(), reasons::kGroupClosed));
  }
}

// Whatever a rank asks for that no meeting can be is refused on that rank, alike by all back ends, before anybody is waited for.
TYPED_TEST_P(CollectiveSuite, RootsAndSizesAreChecked) {
  std::vector<std::byte> bytes(4), longer(size_t{limits::kMaxFrameBytes} + 1);
  const std::vector<size_t> counts = {4, 0};
  const auto refused = [&](auto meet) {
    auto ranks = TypeParam::Make(2);
    ranks[0]->SetDeadline(Deadline::After(kSoon));
    return FailedWith(meet(*ranks[0]), reasons::kMeetingMismatch);
  };
  for (const int root : {-1, 2, 16, 255, 256}) {
    EXPECT_TRUE(refused([&](Collective& rank) { return rank.Broadcast(root, bytes); })) << root;
    EXPECT_TRUE(refused([&](Collective& rank) { return rank.Gather(root, bytes, counts, {}); })) << root;
  }
  EXPECT_TRUE(refused([&](Collective& rank) { return rank.Broadcast(0, longer); }));
  EXPECT_TRUE(refused([&](Collective& rank) { return rank.Broadcast(1, longer); }));
  EXPECT_TRUE(refused([&](Collective& rank) { return rank.Send(1, longer); }));
}

REGISTER_TYPED_TEST_SUITE_P(CollectiveSuite, SumsHaveTheSameBitsForEverySplit, SumsOfAMillionFloats,
                            ReduceScatterGivesEveryRankItsPart, GathersJoinUnequalParts, BroadcastReachesEveryone,
                            MessagesGoRoundARing, ManyDifferentMeetingsInARow, ALostRankEndsTheMeetingForAll,
                            ADeadlineEndsTheMeeting, RanksThatDisagreeFindOut, BadSharesAreRefused, CloseWakesAMeeting,
                            RootsAndSizesAreChecked);

}  // namespace shoal::testing
