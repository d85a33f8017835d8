// What: one rank: it carries out StepPlans on its shard. It keeps each sequence's tokens and block table; the plan brings
// only what is new, drawn tokens too: the head alone decides what a sequence's tokens are.
// Owns: the executor (weights, KV cache) and the sequences' state. Borrows the collectives.
// Threads: one calls it. The executor's threads draw: each sequence of a step is one thread's (LayOut refuses one that appears
// twice), and nothing else of the rank changes meanwhile.
// Limits: kMaxStepRows rows and kMaxStepSequences sequences a step; a thread that draws keeps some 20 bytes for each entry of the
// vocabulary.
// Fails: a plan that contradicts what the rank holds is kBadFrame and computes nothing; collective and executor errors pass
// through. After an error the rank's state is not to be used again.
// Reads next: compute/executor.h, core/step.h.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "comm/collective.h"
#include "compute/executor.h"
#include "core/model_spec.h"
#include "core/shard_plan.h"
#include "core/step.h"

namespace shoal {

// Where a rank meets the others of its group.
struct RankLinks {
  Collective& stage;            // those that share its layers
  Collective* group = nullptr;  // all ranks, for Send and Receive between stages; null where there is one stage
};

class Rank {
 public:
  // `rank` of `plan`, which is checked against the model first (CheckShardPlan).
  static Result<std::unique_ptr<Rank>> Load(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                            int rank, RankLinks links, const ExecutorOptions& options);

  // The rank that draws (DrawingRank) returns the drawn tokens; the others return a result without tokens.
  Result<StepResult> Execute(const StepPlan& plan);

  const Executor& executor() const { return *executor_; }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    int prompt_length = 0;
    SamplingParams sampling;
    std::vector<TokenId> forbidden;
    std::vector<BlockId> blocks;
    StepId laid_out = 0;  // the last step that had rows of it
  };

  // What a row's logits are for.
  struct LogitUse {
    SequenceId id = 0;
    int row = 0;          // in the step
    int position = 0;     // of the token that the logits are about
    bool sample = false;  // else: log-probabilities of the prompt token at `position`
    TokenId guess = -1;   // what the draft says the sampled token is; -1: nothing
  };

  // What the logits of one sequence gave.
  struct Draws {
    size_t first = 0, last = 0;  // in uses_
    std::vector<PromptLogprob> prompt;
    std::vector<SampledToken> tokens;
  };

  Rank(const ModelSpec& spec, int kv_blocks, bool draws, std::unique_ptr<Executor> executor);
  Status TakeStarts(const StepPlan& plan);
  Status LayOut(const StepPlan& plan);
  Status TakeTokens(const SequenceChunk& chunk, Sequence& sequence) const;
  Status Draw(const StepPlan& plan, StepResult& result);
  void DrawOf(Draws& draws);

  const int n_vocab_;
  const int kv_blocks_;
  const bool draws_;
  std::unique_ptr<Executor> executor_;
  std::unordered_map<SequenceId, Sequence> sequences_;

  // The step being carried out; kept to reuse the memory.
  std::vector<TokenId> tokens_;
  std::vector<kernels::Segment> segments_;
  std::vector<LogitUse> uses_;
  std::vector<int32_t> logit_rows_;
  std::span<const float> logits_;

  std::vector<Draws> drawn_;
  StepFailure failure_;
  Program drawing_;
};

}  // namespace shoal
