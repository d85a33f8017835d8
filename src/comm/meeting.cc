#include "comm/meeting.h"

#include <xxhash.h>

#include <cstdio>
#include <string_view>

#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {
namespace {

std::string_view OpName(MeetingOp op) {
  switch (op) {
    case MeetingOp::kAllReduce:
      return "all-reduce";
    case MeetingOp::kReduceScatter:
      return "reduce-scatter";
    case MeetingOp::kAllGather:
      return "all-gather";
    case MeetingOp::kGather:
      return "gather";
    case MeetingOp::kBroadcast:
      return "broadcast";
    case MeetingOp::kMessage:
      return "message";
    case MeetingOp::kBarrier:
      return "barrier";
  }
  return "unknown operation";
}

}  // namespace

std::string ToString(const Meeting& meeting) {
  if (meeting.magic != Meeting::kMagic) return "bytes that are no meeting";
  char tag[16];
  std::snprintf(tag, sizeof tag, "%08x", meeting.tag);
  return std::string(OpName(meeting.op)) + " #" + std::to_string(meeting.sequence) + " phase " +
         std::to_string(meeting.phase) + " of " + std::to_string(meeting.bytes) + " bytes (root " +
         std::to_string(meeting.root) + ", tag " + tag + ")";
}

uint32_t TagOf(std::span<const size_t> counts) {
  return static_cast<uint32_t>(XXH3_64bits(counts.data(), counts.size_bytes()));
}

Error PeerLost(int rank, std::string detail) {
  return MakeError(Code::kUnavailable, reasons::kPeerLost, "rank " + std::to_string(rank) + " is gone",
                   std::move(detail));
}

Error GroupClosed() { return MakeError(Code::kUnavailable, reasons::kGroupClosed, "the group of ranks is closed"); }

Error Mismatch(int rank, const std::string& theirs, const std::string& ours) {
  return MakeError(Code::kInternal, reasons::kMeetingMismatch,
                   "rank " + std::to_string(rank) + " met for something else", "theirs: " + theirs + "; ours: " + ours);
}

Status CheckRoot(int root, int ranks) {
  if (root >= 0 && root < ranks) return {};
  return Fail(Code::kInternal, reasons::kMeetingMismatch, "rank " + std::to_string(root) + " is not in the group");
}

Status CheckSize(size_t bytes) {
  if (bytes <= limits::kMaxFrameBytes) return {};
  return Fail(Code::kResourceExhausted, reasons::kMeetingMismatch, "a meeting is larger than the limit",
              std::to_string(bytes) + " bytes");
}

Result<size_t> TotalOf(std::span<const size_t> counts, int ranks, size_t unit_bytes) {
  if (counts.size() != static_cast<size_t>(ranks))
    return Fail(Code::kInternal, reasons::kMeetingMismatch, "a meeting needs one count per rank");
  const size_t most = limits::kMaxFrameBytes / unit_bytes;
  size_t total = 0;
  for (size_t count : counts) {
    if (count > most)
      return Fail(Code::kResourceExhausted, reasons::kMeetingMismatch, "a meeting is larger than the limit",
                  std::to_string(count) + " elements from one rank");
    total += count;  // at most kMaxRanks times the limit: no overflow
  }
  return total;
}

}  // namespace shoal
