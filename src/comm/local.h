// What: the ranks of a group as threads of one process; they meet in shared memory.
// Owns: the shared state of the group, until the last of its ranks is destroyed.
// Threads: one thread per rank calls its Collective; Close may be called from any thread.
// Limits: kMaxRanks ranks. With more ranks than cores nobody spins: waiting ranks sleep.
// Fails: as comm/collective.h; destroying a rank's Collective closes it, and the others see kPeerLost. Send
// holds one message per direction of a pair: a second one waits until the first was received.
// Reads next: comm/tree_sum.h.
#pragma once

#include <memory>
#include <vector>

#include "comm/collective.h"

namespace shoal {

// group[r] is rank r. size is 1..kMaxRanks.
std::vector<std::unique_ptr<Collective>> MakeLocalGroup(int size);

}  // namespace shoal
