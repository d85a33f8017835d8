// What: the façade of the serving engine: requests in, text and tokens out. All that serve/ sees.
// Owns: the scheduler and all serving state, on one thread; others send it bounded messages.
// Threads: every method may be called from any thread. Sinks are called on the engine's thread and must not block.
// Limits: kMaxQueuedRequests waiting requests; a full queue refuses with kQueueFull (HTTP 429).
// Fails: Submit by value; a request's own failure arrives in its sink as the last Delta.
// Reads next: sched/scheduler.h, engine/group.h.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/limits.h"
#include "core/model_spec.h"
#include "core/overlap.h"
#include "core/request.h"
#include "engine/group.h"
#include "model/tokenizer.h"

namespace shoal {

// One generated (or, with prompt_logprobs, prompt) token.
struct TokenOutput {
  TokenId token = 0;
  std::string text;  // the token's own bytes (may be part of a UTF-8 character)
  float logprob = 0;
  std::vector<TokenLogprob> top;
  std::vector<float> logits;  // when want_logits
};

struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // prompt tokens found in the prefix cache
  int completion_tokens = 0;
};

// What a request's sink receives, in order. The last one has `finish` set; nothing follows it.
struct Delta {
  std::string text;                 // whole UTF-8 characters, cut before a stop string
  std::vector<TokenOutput> prompt;  // first delta only, with prompt_logprobs
  std::vector<TokenOutput> tokens;  // tokens that `text` (or text still held back) is made of
  std::optional<FinishReason> finish;
  std::optional<Error> error;  // with finish == kError
  Usage usage;                 // so far
};
using Sink = std::function<void(Delta)>;

using RequestHandle = uint64_t;

struct EngineStats {
  int waiting = 0;
  int running = 0;
  int kv_blocks = 0;
  int kv_blocks_free = 0;      // nobody holds them
  int kv_blocks_cached = 0;    // those of the free ones that hold a prefix which may be asked for again
  uint64_t prompt_tokens = 0;  // computed, since start
  uint64_t cached_tokens = 0;  // found in the prefix cache instead
  uint64_t generated_tokens = 0;
  uint64_t proposed_tokens = 0;  // guessed ahead from a sequence's own history, and verified
  uint64_t accepted_tokens = 0;  // guesses that were right: tokens that cost no step of their own
  uint64_t preemptions = 0;
  uint64_t steps = 0;
  uint64_t steps_overlapped = 0;                          // of these, computed in parts
  uint64_t finished[4] = {};                              // by FinishReason
  std::array<int64_t, limits::kMaxRanks> rank_busy_ns{};  // how long each rank has computed, without waiting for others
};

struct EngineOptions {
  int max_step_rows = 256;           // token budget of one step
  int max_sequences = 64;            // running at once
  bool prefix_cache = true;          // shared prefixes are computed once
  bool speculate = true;             // guess tokens from a sequence's own history where that pays
  int mixed_rows = -1;               // most prompt rows in a step of decoding sequences; -1 = by measured time, 0 = all
  Overlap overlap = Overlap::kAuto;  // parts of big steps compute and meet in turns; only where ranks share layers
};

class Engine {
 public:
  // The engine takes the group and shares the tokenizer. Starts its thread.
  static std::unique_ptr<Engine> Start(ModelSpec spec, std::shared_ptr<const Tokenizer> tokenizer,
                                       std::unique_ptr<Group> group, EngineOptions options);
  virtual ~Engine() = default;  // cancels what is left, joins the thread

  virtual Result<RequestHandle> Submit(Request request, Sink sink) = 0;
  virtual void Cancel(RequestHandle handle) = 0;  // takes effect at the next step; the sink gets kCancelled
  virtual bool Drain(Deadline deadline) = 0;      // no new requests; true when all finished in time
  virtual EngineStats Stats() const = 0;
  virtual std::optional<Error> failure() const = 0;  // set when the group is lost; /health says so

  virtual const ModelSpec& spec() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const GroupInfo& group() const = 0;
};

}  // namespace shoal
