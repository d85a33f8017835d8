// What: a group without a model: the next token is a hash of the sequence's history and a seed. It stands where real
// ranks stand, and holds the plans to what ranks rely on: rows follow each other, every position has its block, no
// block is written while another sequence holds it, and a prefix that a sequence begins behind lies in its blocks.
// What it computes from is read back through the block table, as attention would, so
// that a wrong table gives a wrong token.
// Owns: sequences, and a "KV cache" of one number per position.
// Threads: one calls Start and Wait; `on_wait` is called on it.
// Limits: as ranks: kMaxStepRows rows, kMaxStepSequences sequences, n_vocab.
// Fails: a plan that breaks the rules is kBadFrame; fail_start_at and fail_wait_at lose the group at that step.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/group.h"

namespace shoal::sim {

struct PretendOptions {
  int kv_blocks = 64;
  int stages = 1;  // of the plan in info()
  int vocabulary = 997;
  uint64_t seed = 1;
  TokenId end_token = -1;  // drawn now and then; -1 = never
  int end_one_in = 0;      // about one draw in so many is the end token; 0 = only by chance of the hash
  int repeat = 0;          // a draw is mostly the token so many positions before (text that repeats itself); 0 = never
  int error_one_in = 0;    // about one draw in so many fails with kModelProducedNan; 0 = never
  StepId fail_start_at = 0;  // Start of this step fails; 0 = never
  StepId fail_wait_at = 0;   // Wait for this step fails
  Nanos base{0}, row{0};     // a step says that it computed for base + row * rows
  Nanos delay{0};            // a step takes at least so long
  // Called in Wait before it returns: a test may block here, or count.
  std::function<void(const StepPlan&)> on_wait = {};
  // What to draw at a position instead of the hash (a scripted end of sequence).
  std::function<std::optional<TokenId>(SequenceId, int position)> force = {};
};

// What the pretend model draws after `history`: the whole truth about it, for comparison.
struct PretendDraw {
  TokenId token = 0;
  bool error = false;
};
PretendDraw DrawPretend(const PretendOptions& options, std::span<const TokenId> history,
                        std::span<const TokenId> forbidden);
float PretendLogprob(TokenId token, int position);

class PretendGroup : public Group {
 public:
  explicit PretendGroup(PretendOptions options);

  Status Start(const StepPlan& plan) override;
  // Steps may be started ahead of their Wait; results come in order.
  Result<StepResult> Wait(Deadline deadline) override;
  const GroupInfo& info() const override { return info_; }

  int sequences_held() const { return static_cast<int>(sequences_.size()); }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    int prompt_length = 0;
    int computed = 0;
    SamplingParams sampling;
    std::vector<TokenId> forbidden;
    std::vector<BlockId> blocks;
    std::vector<TokenId> drawn = {};  // by its last step, not told by a plan yet
  };
  struct Started {
    StepPlan plan;
    StepResult result;
    Time ready;
  };

  Status Compute(const StepPlan& plan, StepResult& result);
  Status Forget(SequenceId id);
  Status Begin(const SequenceStart& start);
  Status Resume(const SequenceChunk& chunk, Sequence& sequence);
  Status ComputeChunk(const SequenceChunk& chunk, StepResult& result);
  Status TakeTokens(const SequenceChunk& chunk, Sequence& sequence);
  // Draws the token after the sequence's last; false: nothing follows it.
  bool Draw(SequenceId id, Sequence& sequence, uint64_t history, StepResult& result);
  uint64_t& Cell(const Sequence& sequence, int position);

  const PretendOptions options_;
  GroupInfo info_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  std::vector<uint64_t> cache_;  // per position of each block: hash of the history up to it
  std::vector<int> holders_;     // [block] sequences that have it in their table
  std::deque<Started> started_;
  StepId last_step_ = 0;
  bool closed_ = false;
};

}  // namespace shoal::sim
