// What: a group whose ranks live in this process. With one rank (the embedded default) the step is computed on the caller's
// own thread; further ranks have a thread each and meet in comm/local.
// The product runs one rank so; several are for tests, which hold them to what worker processes compute.
// Owns: the ranks and their threads.
// Threads: the engine's thread calls Start and Wait.
// Fails: as Rank; the first error closes the group.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"
#include "engine/group.h"
#include "model/tensor_source.h"

namespace shoal {

// Loads plan.size() ranks with `threads` compute threads each.
Result<std::unique_ptr<Group>> LoadLocalGroup(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                              int threads);

}  // namespace shoal
