// What: the ranks of a group as processes, joined by a full mesh of TCP sockets (net/mesh.h makes and
// authenticates them). A waiting rank polls its sockets without sleeping for a short while, then sleeps in
// poll(2), and at once while much is left to move: a meeting costs little more than the exchange itself, and an idle group
// costs no processor time.
// Owns: the sockets.
// Threads: one thread calls it; Close may be called from any thread.
// Limits: kMaxRanks ranks; kMaxFrameBytes per message. No allocation once the largest meeting has been seen.
// Fails: as comm/collective.h. Lengths are never taken from the wire: every message begins with a Meeting
// that must equal what this rank expects, and never more than the expected bytes are read.
// Reads next: comm/meeting.h, comm/tree_sum.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "comm/collective.h"
#include "net/fd.h"

namespace shoal {

struct TcpOptions {
  // How long a waiting rank polls at most before it sleeps (comm/spin.h shortens it where it does not pay).
  Nanos spin = std::chrono::microseconds(50);
  // Compute threads of all ranks on this machine; with more than it has cores nobody spins. 0: one for each
  // rank.
  int threads_here = 0;
  // An all-reduce runs as reduce-scatter and all-gather when that saves a rank at least `divide_at` bytes, or when a vector
  // has at least `divide_from` bytes (bench/collective_bench --divide). The same on every rank.
  size_t divide_at = size_t{64} << 10;
  size_t divide_from = size_t{512} << 10;
};

// links[p] is a connected stream socket to rank p; links[rank] is empty. links.size() is the group's size. Other links may be
// empty too: those ranks are out of reach, and the only meetings are then Send and Receive with the others.
Result<std::unique_ptr<Collective>> MakeTcpRank(int rank, std::vector<Fd> links, const TcpOptions& options = {});

}  // namespace shoal
