// All-reduce between processes (comm/tcp) and threads (comm/local), beside the plain exchange of the same bytes over the
// same kind of socket, polled without sleeping: the bound. Also where dividing a sum among the ranks begins to pay.
//     collective_bench [--rounds N] [--divide]
// Rounds of the variants take turns, so that a neighbour's load falls on all of them; figures are medians of rank 0.
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/check.h"
#include "comm/local.h"
#include "comm/tcp.h"
#include "compute/aligned_buffer.h"
#include "net/socket.h"

using namespace shoal;

namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }

using Mesh = std::vector<std::vector<Fd>>;

Mesh MakeSockets(size_t ranks) {
  Mesh mesh(ranks);
  for (auto& row : mesh) row.resize(ranks);
  auto listener = ListenOn({"127.0.0.1", 0}, Exposure::kLoopback);
  const auto address = LocalAddress(listener->get());
  for (size_t a = 0; a < ranks; ++a)
    for (size_t b = 0; b < a; ++b) {
      mesh[a][b] = std::move(*DialTo(*address, Soon(), Exposure::kLoopback));
      mesh[b][a] = std::move(*AcceptFrom(listener->get(), Soon()));
    }
  return mesh;
}

ReduceShares EqualShares(size_t ranks) {
  ReduceShares shares;
  for (const SliceRun& run : ShareSlices(std::vector<double>(ranks, 1.0)))
    shares.subtrees.push_back(MaximalSubtrees(run, 1024));
  return shares;
}

// Both sides send and receive `bytes`, never sleeping.
void PlainExchange(int fd, std::vector<char>& out, std::vector<char>& in, size_t bytes) {
  size_t sent = 0, got = 0;
  while (sent < bytes || got < bytes) {
    if (sent < bytes) {
      const ssize_t n = ::send(fd, out.data() + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) sent += static_cast<size_t>(n);
    }
    if (got < bytes) {
      const ssize_t n = ::recv(fd, in.data() + got, bytes - got, MSG_DONTWAIT);
      if (n > 0) got += static_cast<size_t>(n);
      SHOAL_CHECK(n != 0);
    }
  }
}

struct Sums {
  explicit Sums(size_t ranks) : shares(EqualShares(ranks)) {}
  void Run(Collective& rank, size_t bytes) {
    const size_t n = bytes / sizeof(float);
    const size_t vectors = shares.subtrees[static_cast<size_t>(rank.rank())].size();
    if (bytes > reserved) {
      reserved = bytes;
      own.Reserve(bytes * vectors);
      out.Reserve(bytes);
      std::ranges::fill(std::span(own.floats(), n * vectors), 0.0f);
    }
    SHOAL_CHECK(rank.AllReduce(shares, std::span(own.floats(), n * vectors), std::span(out.floats(), n)).has_value());
  }
  ReduceShares shares;
  // As in a forward pass. Where a buffer lies in its page matters: a kernel that copies it to a place a few bytes further in
  // another page takes half as long again (stores and loads whose addresses differ by little in their low 12 bits).
  AlignedBuffer own, out;
  size_t reserved = 0;
};

double MicrosSince(Time start) { return static_cast<double>((Now() - start).count()) / 1000.0; }

double Median(std::vector<double>& values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

using Step = std::function<void(size_t bytes)>;
struct Variant {
  std::string name;
  Step step;
};

// Every rank runs this with the same variants; rank 0 keeps the times.
std::map<std::pair<std::string, size_t>, std::vector<double>> RunAll(std::vector<Variant>& variants,
                                                                     const std::vector<size_t>& sizes, int rounds) {
  std::map<std::pair<std::string, size_t>, std::vector<double>> times;
  for (int round = 0; round < rounds; ++round)
    for (const size_t bytes : sizes)
      for (Variant& variant : variants)
        for (int i = 0; i < 20; ++i) {
          const Time start = Now();
          variant.step(bytes);
          if (i >= 4) times[{variant.name, bytes}].push_back(MicrosSince(start));
        }
  return times;
}

// Forks ranks - 1 processes; `body(rank)` runs in each, and in this one as rank 0.
void Fork(size_t ranks, const std::function<void(size_t)>& body) {
  std::fflush(stdout);
  std::vector<pid_t> children;
  for (size_t r = 1; r < ranks; ++r) {
    const pid_t child = ::fork();
    if (child == 0) {
      body(r);
      ::_exit(0);
    }
    children.push_back(child);
  }
  body(0);
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
}

void CompareWithPlain(int rounds) {
  const std::vector<size_t> sizes = {1u << 10,  2u << 10,  4u << 10,   8u << 10,  16u << 10,
                                     32u << 10, 64u << 10, 128u << 10, 256u << 10};
  Mesh plain = MakeSockets(2), mesh = MakeSockets(2), divided = MakeSockets(2);
  std::map<std::pair<std::string, size_t>, std::vector<double>> times;
  Fork(2, [&](size_t r) {
    for (Mesh* each : {&plain, &mesh, &divided}) (*each)[1 - r].clear();
    auto tcp = MakeTcpRank(static_cast<int>(r), std::move(mesh[r]));
    auto parts = MakeTcpRank(static_cast<int>(r), std::move(divided[r]), {.divide_at = 0});
    for (auto* each : {&tcp, &parts}) (**each)->SetDeadline(Soon());
    std::vector<char> out(sizes.back()), in(sizes.back());
    Sums sums(2);
    std::vector<Variant> variants;
    variants.push_back({"plain", [&](size_t bytes) { PlainExchange(plain[r][1 - r].get(), out, in, bytes); }});
    variants.push_back({"tcp", [&](size_t bytes) { sums.Run(**tcp, bytes); }});
    variants.push_back({"parts", [&](size_t bytes) { sums.Run(**parts, bytes); }});
    times = RunAll(variants, sizes, rounds);
  });
  auto group = MakeLocalGroup(2);
  std::map<std::pair<std::string, size_t>, std::vector<double>> local;
  std::vector<std::thread> threads;
  for (auto& rank : group)
    threads.emplace_back([&] {
      Sums sums(2);
      rank->SetDeadline(Soon());
      std::vector<Variant> variants;
      variants.push_back({"local", [&](size_t bytes) { sums.Run(*rank, bytes); }});
      auto mine = RunAll(variants, sizes, rounds);
      if (rank->rank() == 0) local = std::move(mine);
    });
  for (auto& thread : threads) thread.join();
  std::printf("all-reduce, 2 ranks, median us\n%10s %10s %10s %8s %10s %10s\n", "bytes", "plain", "tcp", "ratio",
              "in parts", "local");
  for (const size_t bytes : sizes) {
    const double bound = Median(times[{"plain", bytes}]), ours = Median(times[{"tcp", bytes}]);
    std::printf("%10zu %10.1f %10.1f %8.2f %10.1f %10.1f\n", bytes, bound, ours, ours / bound,
                Median(times[{"parts", bytes}]), Median(local[{"local", bytes}]));
  }
}

void CompareDividing(size_t ranks, int rounds) {
  const std::vector<size_t> sizes = {4u << 10,   16u << 10,  32u << 10, 64u << 10,
                                     128u << 10, 256u << 10, 1u << 20,  4u << 20};
  Mesh whole_mesh = MakeSockets(ranks), divided_mesh = MakeSockets(ranks);
  std::map<std::pair<std::string, size_t>, std::vector<double>> times;
  Fork(ranks, [&](size_t r) {
    for (Mesh* each : {&whole_mesh, &divided_mesh})
      for (size_t other = 0; other < ranks; ++other)
        if (other != r) (*each)[other].clear();
    auto whole = MakeTcpRank(static_cast<int>(r), std::move(whole_mesh[r]),
                             {.divide_at = size_t{1} << 40, .divide_from = size_t{1} << 40});
    auto divided = MakeTcpRank(static_cast<int>(r), std::move(divided_mesh[r]), {.divide_at = 0});
    for (auto* each : {&whole, &divided}) (**each)->SetDeadline(Soon());
    Sums sums(ranks);
    std::vector<Variant> variants;
    variants.push_back({"whole", [&](size_t bytes) { sums.Run(**whole, bytes); }});
    variants.push_back({"parts", [&](size_t bytes) { sums.Run(**divided, bytes); }});
    times = RunAll(variants, sizes, rounds);
  });
  size_t slots = 0;
  for (const auto& trees : EqualShares(ranks).subtrees) slots += trees.size();
  std::printf("\nall-reduce, %zu ranks (%zu subtree sums), median us\n%10s %10s %10s %14s\n", ranks, slots, "bytes",
              "whole", "in parts", "saved bytes");
  for (const size_t bytes : sizes) {
    const double share = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
    const double saved = static_cast<double>(bytes) * share *
                         (static_cast<double>(slots) - static_cast<double>(slots) / static_cast<double>(ranks) - 1);
    std::printf("%10zu %10.1f %10.1f %14.0f\n", bytes, Median(times[{"whole", bytes}]), Median(times[{"parts", bytes}]),
                saved);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 60;
  bool divide = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--rounds" && i + 1 < argc) rounds = std::max(1, std::atoi(argv[++i]));
    if (std::string_view(argv[i]) == "--divide") divide = true;
  }
  CompareWithPlain(rounds);
  if (divide)
    for (const size_t ranks : {2u, 3u, 4u, 5u, 8u}) CompareDividing(ranks, std::max(2, rounds / 10));
}
