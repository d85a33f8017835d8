// What: a group whose ranks are worker processes. The head sends each plan to every rank and waits for what the drawing rank drew.
// Owns: the links to its workers. Closes them (after a goodbye) with itself.
// Threads: LoadRemoteGroup uses one per worker; afterwards the engine's thread alone.
// Fails: kPeerLost at once when a worker's link closes, naming it (Wait and Check look at all links); what a worker reports;
// kPeerTimeout at the step's deadline, and when a worker of an idle group leaves a ping unanswered for kPongTimeout. After a
// failure every call returns kGroupClosed.
// Reads next: engine/worker.h (the other side), engine/shard_server.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/ids.h"
#include "core/shard_plan.h"
#include "engine/group.h"
#include "model/gguf.h"
#include "net/link.h"

namespace shoal {

// What a worker says it has to give.
struct Offer {
  std::string name;
  std::string host;  // where the other ranks reach it
  uint16_t data_port = 0;
  int threads = 1;
  uint64_t memory = 0;
  std::string kernel;  // compute/kernels TargetName()
};

// A worker that has proved itself and said what it has to give; rank = its place in the vector.
struct Member : Offer {
  Link link;
};

// Receives the worker's first message. host: the address it came from.
Result<Offer> Introduce(Link& link, std::string host);

// Whether a member that waits for the others is still there. It has nothing to say meanwhile: whatever it sends is its end.
bool StillWaits(Member& member);

// Has every member load its share of `plan` and join the others. `sent` hears of the bytes that go out.
Result<std::unique_ptr<Group>> LoadRemoteGroup(std::shared_ptr<const GgufFile> file, std::vector<Member> members,
                                               const ShardPlan& plan, Epoch epoch,
                                               const std::function<void(uint64_t)>& sent);

}  // namespace shoal
