// What: the head's end of a load: answers one worker's reads of the model file until it says Loaded or Failed.
// Owns: nothing.
// Threads: one per worker; the file is immutable.
// Limits: a read must lie inside the header or the tensor it names; answers go in chunks of kMaxChunkBytes.
// Fails: what the worker says, kPeerLost, kPeerTimeout when a worker asks nothing for kLoadTimeout, kBadFrame.
// Reads next: engine/remote_source.h (the other end).
#pragma once

#include <cstdint>
#include <functional>

#include "base/result.h"
#include "model/gguf.h"
#include "net/link.h"

namespace shoal {

struct LoadedShard {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
};

// `sent` hears of every chunk's size, for a progress bar.
Result<LoadedShard> ServeShard(Link& link, const GgufFile& file, const std::function<void(uint64_t)>& sent);

}  // namespace shoal
