// What: a group of ranks that together hold one replica of the model, as the engine sees it: a plan goes in, a result comes
// out. Back ends: in this process (engine/local_group), worker processes (engine/remote_group), pretend (sim/pretend_group).
// Threads: one thread (the engine's) calls Start and Wait, and Check while no step is under way.
// Limits: as many steps at once as the plan has stages; a sequence is in more than one of them only while its known tokens
// are computed. Results come in the order of the starts.
// Fails: after an error the group is closed for good.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "core/shard_plan.h"
#include "core/step.h"

namespace shoal {

struct RankInfo {
  std::string node;         // "local", or the worker's name
  size_t weight_bytes = 0;  // resident
  size_t kv_bytes = 0;
  int threads = 1;
};

struct GroupInfo {
  ShardPlan plan;
  std::vector<RankInfo> ranks;
  std::string kernel;  // compute/kernels TargetName() of all ranks
};

class Group {
 public:
  virtual ~Group() = default;
  // Hands the plan to all ranks; returns without waiting for them.
  virtual Status Start(const StepPlan& plan) = 0;
  // The result of the oldest step under way.
  virtual Result<StepResult> Wait(Deadline deadline) = 0;
  // Between steps, every now and then: whether all ranks are still there. Does not wait for them.
  virtual Status Check() { return {}; }
  // [rank]: how long each has computed since the start, in all, without waiting for others; empty: not known.
  virtual std::span<const int64_t> busy_ns() const { return {}; }
  virtual const GroupInfo& info() const = 0;
};

}  // namespace shoal
