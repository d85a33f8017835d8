// What: the head's side of a split model: listens for workers, starts the local ones, waits until all have joined, plans,
// and has every worker load exactly its slices.
// Owns: nothing that outlives a call, so a signal may end the process while it waits.
// Threads: the caller's, which waits; a head that was asked for local workers alone gives up after 30 s, others after a day.
// Fails: kOutOfMemory naming the node that is too small, kPeerTimeout when workers do not come in time, and whatever
// loading fails with; children are ended by LocalWorkers.
// Reads next: engine/remote_group.h, engine/worker.h (the other side).
#pragma once

#include <memory>

#include "app/local_workers.h"
#include "app/options.h"
#include "base/result.h"
#include "core/model_spec.h"
#include "engine/group.h"
#include "model/gguf.h"

namespace shoal {

// The workers become ranks in the order of their names, which are unique then: a second "x" is called "x-2".
Result<std::unique_ptr<Group>> GatherWorkers(const ModelSpec& spec, std::shared_ptr<const GgufFile> file,
                                             const EngineFlags& flags, LocalWorkers& children);

// The join token of a file: its first line.
Result<std::string> ReadToken(const std::string& path);
// The join token: the file's first line; a missing file is made with a new token, readable by its owner only.
Result<std::string> ReadOrMakeToken(const std::string& path);

}  // namespace shoal
