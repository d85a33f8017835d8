#include "net/mesh.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "core/limits.h"
#include "core/reasons.h"
#include "net/handshake.h"

namespace shoal {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

struct Group {
  explicit Group(int size) : key(NewSecret()) {
    for (int r = 0; r < size; ++r) {
      auto listener = Listener::Open("127.0.0.1", 0);
      EXPECT_TRUE(listener.has_value());
      peers.push_back(listener->address());
      listeners.push_back(std::move(*listener));
    }
  }
  MeshOptions Options(int rank) const { return {rank, peers, key, 3, Exposure::kLoopback}; }
  Result<std::vector<Fd>> Join(int rank, Deadline deadline) {
    return JoinMesh(listeners[static_cast<size_t>(rank)], Options(rank), deadline);
  }
  std::string key;
  std::vector<Listener> listeners;
  std::vector<Address> peers;
};

TEST(Mesh, EveryRankReachesEveryOther) {
  for (int size : {1, 2, 5, limits::kMaxRanks}) {
    Group group(size);
    std::vector<std::vector<Fd>> links(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r)
      threads.emplace_back([&, r] {
        auto joined = group.Join(r, Soon());
        ASSERT_TRUE(joined.has_value()) << ToString(joined.error());
        links[static_cast<size_t>(r)] = std::move(*joined);
      });
    for (auto& thread : threads) thread.join();
    for (size_t a = 0; a < links.size(); ++a) {
      EXPECT_FALSE(links[a][a].valid());
      for (size_t b = 0; b < links.size(); ++b)
        if (a != b) {
          ASSERT_EQ(::send(links[a][b].get(), &a, sizeof a, 0), static_cast<ssize_t>(sizeof a));
        }
    }
    for (size_t a = 0; a < links.size(); ++a)
      for (size_t b = 0; b < links.size(); ++b) {
        if (a == b) continue;
        size_t from = 99;
        ASSERT_TRUE(WaitFor(links[a][b].get(), 1 /* POLLIN */, Soon()).has_value());
        ASSERT_EQ(::recv(links[a][b].get(), &from, sizeof from, 0), static_cast<ssize_t>(sizeof from));
        EXPECT_EQ(from, b);
      }
  }
}

TEST(Mesh, StrangersHoldUpNobody) {
  Group group(2);
  std::vector<Link> strangers;
  for (int i = 0; i < 40; ++i) {
    auto link = Link::Dial("127.0.0.1", group.peers[0].port, Soon());
    ASSERT_TRUE(link.has_value());
    if (i % 2 == 0) (void)::send(link->fd(), "GET / HTTP/1.1\r\n", 16, MSG_NOSIGNAL);
    strangers.push_back(std::move(*link));
  }
  std::thread other([&] { EXPECT_TRUE(group.Join(1, Soon()).has_value()); });
  const Time start = Now();
  EXPECT_TRUE(group.Join(0, Soon()).has_value());
  EXPECT_LT(Now() - start, std::chrono::seconds(9));
  other.join();
}

TEST(Mesh, MissingRanksAreNamed) {
  Group group(3);
  std::thread other([&] { (void)group.Join(1, Deadline::After(std::chrono::seconds(2))); });
  const auto joined = group.Join(0, Deadline::After(std::chrono::seconds(2)));
  other.join();
  ASSERT_FALSE(joined.has_value());
  EXPECT_EQ(joined.error().reason, reasons::kPeerTimeout);
  EXPECT_NE(joined.error().detail.find("rank 2"), std::string::npos) << joined.error().detail;
  EXPECT_EQ(joined.error().detail.find("rank 1"), std::string::npos);
}

TEST(Mesh, ADeadListenerIsPeerLost) {
  Group group(2);
  group.peers[0].port = [] { return Listener::Open("127.0.0.1", 0)->port(); }();
  const auto joined = group.Join(1, Soon());
  ASSERT_FALSE(joined.has_value());
  EXPECT_EQ(joined.error().reason, reasons::kPeerLost);
  EXPECT_NE(joined.error().detail.find("rank 0"), std::string::npos);
}

TEST(Mesh, OtherKeysEpochsAndSizesAreRefused) {
  const auto attempt = [](auto change) {
    Group group(2);
    MeshOptions options = group.Options(1);
    change(options);
    std::thread other([&] { (void)group.Join(0, Deadline::After(std::chrono::seconds(2))); });
    const auto joined = JoinMesh(group.listeners[1], options, Soon());
    other.join();
    EXPECT_FALSE(joined.has_value());
    return joined ? kNoReason : joined.error().reason;
  };
  EXPECT_EQ(attempt([](MeshOptions& options) { options.group_key = NewSecret(); }), reasons::kBadToken);
  EXPECT_EQ(attempt([](MeshOptions& options) { options.epoch = 2; }), reasons::kStaleEpoch);
  EXPECT_EQ(attempt([](MeshOptions& options) { options.peers.push_back({"127.0.0.1", 1}); }), reasons::kBadHandshake);
}

}  // namespace
}  // namespace shoal
