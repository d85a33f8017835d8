// What: a worker process's life after the handshake: tells the head what it has to give, becomes a rank when told so, carries
// out steps until the head leaves.
// Owns: the data-plane listener, the rank and its collective.
// Threads: one (plus the rank's compute threads).
// Limits: a plan whose weights and KV pool are more than was lent is refused before anything of it is read.
// Fails: kPeerLost when the head is gone, kBadFrame when it makes no sense, kOutOfMemory for a plan beyond what was lent, and
// whatever loading or a step fails with; the head is told first. After an error the process is to end: a group that lost a rank
// is closed for good.
// Reads next: engine/remote_group.h (the other side), engine/rank.h, net/mesh.h.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "net/link.h"

namespace shoal {

struct WorkerOptions {
  std::string name;
  int threads = 1;
  uint64_t memory = 0;  // bytes it lends
};

// Returns when the head says goodbye.
Status ServeHead(Link& link, const WorkerOptions& options);

}  // namespace shoal
