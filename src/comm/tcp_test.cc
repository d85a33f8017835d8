#include "comm/tcp.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/collective_suite.h"
#include "comm/meeting.h"
#include "net/handshake.h"
#include "net/mesh.h"

namespace shoal::testing {
namespace {

// Two connected loopback sockets.
std::pair<Fd, Fd> SocketPair() {
  Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  Fd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(near.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  Fd far(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(far.valid());
  return {std::move(near), std::move(far)};
}

Ranks MakeMesh(int size, const TcpOptions& options) {
  std::vector<std::vector<Fd>> links(static_cast<size_t>(size));
  for (auto& row : links) row.resize(static_cast<size_t>(size));
  for (size_t a = 0; a < links.size(); ++a)
    for (size_t b = 0; b < a; ++b) std::tie(links[a][b], links[b][a]) = SocketPair();
  Ranks ranks;
  for (int r = 0; r < size; ++r) {
    auto made = MakeTcpRank(r, std::move(links[static_cast<size_t>(r)]), options);
    EXPECT_TRUE(made.has_value());
    ranks.push_back(std::move(*made));
  }
  return ranks;
}

}  // namespace

struct TcpBackEnd {
  static Ranks Make(int size) { return MakeMesh(size, {}); }
};
// Every sum in parts, nobody polls.
struct DividedTcpBackEnd {
  static Ranks Make(int size) { return MakeMesh(size, {.spin = Nanos(0), .divide_at = 0}); }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Tcp, CollectiveSuite, TcpBackEnd);
INSTANTIATE_TYPED_TEST_SUITE_P(TcpInParts, CollectiveSuite, DividedTcpBackEnd);

namespace {

TEST(Tcp, RanksThatJoinThroughTheMeshMeet) {
  constexpr int kSize = 3;
  const std::string key = NewSecret();
  std::vector<Listener> listeners;
  std::vector<Address> peers;
  for (int r = 0; r < kSize; ++r) {
    listeners.push_back(std::move(*Listener::Open("127.0.0.1", 0)));
    peers.push_back(listeners.back().address());
  }
  std::vector<std::thread> threads;
  for (int r = 0; r < kSize; ++r)
    threads.emplace_back([&, r] {
      auto links =
          JoinMesh(listeners[static_cast<size_t>(r)], {r, peers, key, 1, Exposure::kLoopback}, Deadline::After(kSoon));
      ASSERT_TRUE(links.has_value()) << ToString(links.error());
      auto rank = MakeTcpRank(r, std::move(*links));
      ASSERT_TRUE(rank.has_value());
      (*rank)->SetDeadline(Deadline::After(kSoon));
      // A rank that is ready early may speak while another still shakes hands with a third.
      auto bytes = r == 0 ? Pattern(0, 100'000) : std::vector<std::byte>(100'000);
      ExpectOk((*rank)->Broadcast(0, bytes));
      EXPECT_EQ(bytes, Pattern(0, 100'000));
      ExpectOk((*rank)->Barrier());
    });
  for (auto& thread : threads) thread.join();
}

TEST(Tcp, AKilledProcessIsALostPeerAtOnce) {
  auto [near, far] = SocketPair();
  const auto sum = MakeSumCase(ShareSlices({1, 1}), 64);
  const pid_t child = ::fork();
  if (child == 0) {
    near.Reset();
    std::vector<Fd> links(2);
    links[0] = std::move(far);
    auto rank = MakeTcpRank(1, std::move(links));
    auto own = OwnSums(sum, 1, 1000);
    std::vector<float> out(1000);
    (void)(*rank)->AllReduce(sum.shares, own, out);
    ::kill(::getpid(), SIGKILL);
  }
  far.Reset();
  std::vector<Fd> links(2);
  links[1] = std::move(near);
  auto rank = MakeTcpRank(0, std::move(links));
  (*rank)->SetDeadline(Deadline::After(kSoon));
  auto own = OwnSums(sum, 0, 1000);
  std::vector<float> out(1000);
  ExpectOk((*rank)->AllReduce(sum.shares, own, out));
  const Time start = Now();
  const Status status = (*rank)->AllReduce(sum.shares, own, out);
  EXPECT_TRUE(FailedWith(status, reasons::kPeerLost));
  EXPECT_LT(Now() - start, std::chrono::seconds(5));
  ::waitpid(child, nullptr, 0);
}

// A peer that speaks, but not what is expected: nothing but the expected bytes is read, and nothing is believed.
TEST(Tcp, ForeignHeadersAreAMismatch) {
  const auto answer = [](Meeting meeting, size_t piece) {
    auto [near, far] = SocketPair();
    std::vector<Fd> links(2);
    links[1] = std::move(near);
    auto rank = MakeTcpRank(0, std::move(links));
    (*rank)->SetDeadline(Deadline::After(kSoon));
    std::thread peer([&, fd = far.get()] {
      const auto* bytes = reinterpret_cast<const char*>(&meeting);
      for (size_t at = 0; at < sizeof meeting; at += piece)
        (void)::send(fd, bytes + at, std::min(piece, sizeof meeting - at), MSG_NOSIGNAL);
    });
    const Status status = (*rank)->Barrier();
    peer.join();
    return status;
  };
  ExpectOk(answer({}, sizeof(Meeting)));
  ExpectOk(answer({}, 1));  // one byte at a time
  for (const Meeting& meeting :
       {Meeting{.magic = 1}, Meeting{.op = static_cast<MeetingOp>(200)}, Meeting{.root = 1}, Meeting{.phase = 1},
        Meeting{.reserved = 1}, Meeting{.tag = 9}, Meeting{.sequence = 1}, Meeting{.bytes = ~0ull}})
    EXPECT_TRUE(FailedWith(answer(meeting, 7), reasons::kMeetingMismatch));
}

}  // namespace
}  // namespace shoal::testing
