// What: where the ranks of a group meet. One interface, back ends local (threads of one process) and tcp
// (processes); all pass one test suite (comm/collective_suite.h).
// Owns: its links to the other ranks.
// Threads: one thread per rank calls it; meetings happen in the same order on every rank.
// Limits: kMaxRanks ranks; a meeting moves at most kMaxFrameBytes per peer. `out` never overlaps `own`.
// Fails: kPeerLost at once when a peer is gone, kPeerTimeout at the deadline, kMeetingMismatch when ranks
// disagree on what they do. After the first failure the collective is closed for good and every later call
// returns kGroupClosed: the next epoch makes a new one.
// Reads next: core/slices.h, comm/local.h, comm/tcp.h.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "core/slices.h"

namespace shoal {

// Which subtree sums each rank brings to an all-reduce; the same value on every rank.
struct ReduceShares {
  std::vector<std::vector<Subtree>> subtrees;  // [rank]; a rank with an empty share brings none
};

class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out = the root of the fixed tree over all ranks' subtree sums, the same bits on every rank and for every
  // split. own: shares.subtrees[rank()].size() vectors of out.size() floats, one after the other; they may be
  // overwritten.
  virtual Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) = 0;

  // As AllReduce, but rank r receives only elements [counts[0..r-1] summed, + counts[r]) of the root
  // (out.size() == counts[rank()]).
  virtual Status ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                               std::span<float> out) = 0;

  // Rank r brings counts[r] bytes; out holds all, in rank order. counts may differ and be 0.
  virtual Status AllGather(std::span<const std::byte> own, std::span<const size_t> counts,
                           std::span<std::byte> out) = 0;

  // As AllGather, but only `root` receives (out is empty elsewhere).
  virtual Status Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                        std::span<std::byte> out) = 0;

  // root's bytes arrive in everyone's buffer.
  virtual Status Broadcast(int root, std::span<std::byte> bytes) = 0;

  // Send may wait for the matching Receive (it does for long messages): two ranks never both send first.
  virtual Status Send(int to, std::span<const std::byte> bytes) = 0;
  virtual Status Receive(int from, std::span<std::byte> bytes) = 0;
  virtual Status Barrier() = 0;

  // By when the meetings of the coming step must be over.
  virtual void SetDeadline(Deadline deadline) = 0;

  // From any thread: the meeting under way on this rank fails (kGroupClosed), as do all later ones; peers see
  // kPeerLost.
  virtual void Close() = 0;
};

}  // namespace shoal
