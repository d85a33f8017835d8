// What: what a rank says about a meeting before any data moves, so that ranks which disagree find out
// instead of mixing up bytes. The tcp back end sends it as the header of every message; the local one
// compares it in memory.
// Reads next: comm/collective.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "base/result.h"

namespace shoal {

enum class MeetingOp : uint8_t {
  kAllReduce = 1,
  kReduceScatter,
  kAllGather,
  kGather,
  kBroadcast,
  kMessage,  // Send and Receive
  kBarrier,
};

struct Meeting {
  static constexpr uint32_t kMagic = 0x54454d53;  // "SMET"
  uint32_t magic = kMagic;
  MeetingOp op = MeetingOp::kBarrier;
  uint8_t root = 0;
  uint8_t phase = 0;  // an all-reduce of many bytes sends twice
  uint8_t reserved = 0;
  uint32_t tag = 0;       // fingerprint of the shares or counts that all ranks must agree on
  uint32_t sequence = 0;  // counts the meetings (local) or the messages of one direction of one pair (tcp)
  uint64_t bytes = 0;     // local: of the whole meeting; tcp: that follow this header
  friend bool operator==(const Meeting&, const Meeting&) = default;
};
static_assert(sizeof(Meeting) == 24 && std::is_trivially_copyable_v<Meeting>);

// "all-reduce #7 of 4096 bytes (tag 1f2e3d4c)".
std::string ToString(const Meeting& meeting);

// Fingerprint of per-rank counts.
uint32_t TagOf(std::span<const size_t> counts);

// The three failures that every back end can give.
Error PeerLost(int rank, std::string detail);
Error GroupClosed();
Error Mismatch(int rank, const std::string& theirs, const std::string& ours);

// Whether `root` is one of the ranks; whether a meeting may move so many bytes to a peer.
Status CheckRoot(int root, int ranks);
Status CheckSize(size_t bytes);

// Sum of counts; an error when it is more than a meeting may move or when there are not `ranks` of them.
Result<size_t> TotalOf(std::span<const size_t> counts, int ranks, size_t unit_bytes);

}  // namespace shoal
