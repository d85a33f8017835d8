// What: joins the ranks of a group: afterwards every rank has one authenticated socket to every other, as
// comm/tcp takes them. Rank i dials the ranks below it and accepts those above it; all prove that they hold
// the group's key, in the same epoch.
// Threads: blocks the caller; strangers that connect are handled beside, and neither hold up the ranks nor
// get an answer.
// Limits: kMaxRanks ranks; strangers as net/doorkeeper.h.
// Fails: kPeerTimeout naming the ranks that are missing, or the rank that could not be dialled; from a rank dialled, naming
// it: kPeerLost (refused, gone), kPeerTimeout, kStaleEpoch, kBadToken, kBadHandshake, kVersionMismatch; kBadConfig when an
// address is not loopback; kIo when a name does not resolve or the listener fails.
// Reads next: net/doorkeeper.h, net/handshake.h, comm/tcp.h.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "core/ids.h"
#include "net/fd.h"
#include "net/link.h"

namespace shoal {

struct MeshOptions {
  int rank = 0;
  std::vector<Address> peers;  // [rank]; ours is not dialled
  std::string group_key;       // kSecretBytes random bytes made by the head for this group
  Epoch epoch = 0;
  Exposure exposure = Exposure::kLoopback;
};

// result[p] is the socket to rank p; result[rank] is empty. `listener` is where peers[rank] points to.
Result<std::vector<Fd>> JoinMesh(Listener& listener, const MeshOptions& options, Deadline deadline);

}  // namespace shoal
