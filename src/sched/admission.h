// What: may this request be served at all? Everything that a caller can get wrong is refused here, before the
// request costs anything; what passes fits the model, the pool and the limits.
// Threads: pure; any.
// Fails: kInvalidValue, kContextLengthExceeded, kOutOfBlocks, with `param` naming the field.
#pragma once

#include <vector>

#include "base/result.h"
#include "core/limits.h"
#include "core/overlap.h"
#include "core/request.h"

namespace shoal {

struct SchedulerOptions {
  int max_step_rows = 256;               // token budget of one step
  int max_sequences = 64;                // running at once; at most max_step_rows, so that each moves in every step
  int kv_blocks = 0;                     // size of the pool
  int context = 0;                       // most tokens of one sequence (prompt and output)
  int vocabulary = 0;                    // token ids are 0 .. vocabulary - 1
  std::vector<TokenId> end_tokens = {};  // end a generation, unless the request ignores them
  bool prefix_cache = false;             // keep blocks of ended sequences, to be found again
  int max_draft = 0;                     // most tokens proposed for one sequence in one step; 0 = no speculation
  int steps_at_once = 1;                 // in flight: the stages of the group
  int mixed_rows = 0;                    // most prompt rows beside decoding sequences; 0 = all, -1 = by measured time

  Overlap overlap = Overlap::kOff;  // whether big steps are computed in parts; kOff where ranks have nothing to add

  // Most tokens of one sequence: the context, or the whole pool where that is smaller.
  int sequence_limit() const {
    const int64_t pool = static_cast<int64_t>(kv_blocks) * limits::kBlockTokens;
    return static_cast<int>(pool < context ? pool : context);
  }
};

Status CheckRequest(const Request& request, const SchedulerOptions& options);

}  // namespace shoal
