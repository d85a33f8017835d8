// What: the values that pass between the scheduler and the ranks. A StepPlan says what to compute; a StepResult says what
// came out. Both are plain, printable, and carried over the wire by net/codec.
//
// There is no prefill and no decode: each sequence lets `computed` catch up with its tokens, some rows a step.
// A rank keeps, per sequence, its tokens and its block table; the plan carries only what is new.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "core/ids.h"
#include "core/request.h"

namespace shoal {

// A sequence that the ranks do not hold yet (new, or back after a pre-emption).
struct SequenceStart {
  SequenceId id = 0;
  std::vector<TokenId> tokens;  // all known tokens: prompt and what was generated before
  int prompt_length = 0;        // the first tokens of `tokens` that are the prompt
  SamplingParams sampling;
  std::vector<TokenId> forbidden;  // never sampled (end-of-sequence ids when ignored)
};

// Most tokens that are proposed for one sequence in one step.
inline constexpr int kMaxDraft = 15;

// Rows of one sequence in one step: positions [first, first + count), and one more for each token of `draft`.
// Proposals: with `sample`, the rank draws the token after the last known one; while a draw is what the draft said, the row of
// that token is good, and the next one is drawn from it. So 1 to draft.size() + 1 tokens come out, the same ones that come out
// one by one without a draft; rows of refused proposals are written again later.
struct SequenceChunk {
  SequenceId id = 0;
  int first = 0;                    // position of the first row
  int count = 0;                    // rows, >= 1
  std::vector<BlockId> new_blocks;  // appended to the sequence's block table before computing
  bool sample = false;              // the last row is the last known token: draw the next one
  std::vector<TokenId> draft = {};  // guesses of the next tokens; only with `sample`
  // Drawn since the ranks last heard of the sequence; appended to its tokens before the rows are laid out.
  std::vector<TokenId> new_tokens = {};
  int rows() const { return count + static_cast<int>(draft.size()); }
};

struct StepPlan {
  StepId step = 0;
  std::vector<SequenceId> removed;  // forget these first (finished, cancelled, pre-empted)
  std::vector<SequenceStart> added;
  std::vector<SequenceChunk> chunks;
  bool overlap = false;  // compute some rows while the sums of others travel; the same result
  int rows() const {
    int n = 0;
    for (const auto& chunk : chunks) n += chunk.rows();
    return n;
  }
};

// A drawn token; it sits at position `position` of its sequence. Several of one sequence lie together, in order.
struct SampledToken {
  SequenceId id = 0;
  int position = 0;
  TokenId token = 0;
  float logprob = 0;              // natural log, of the raw logits' softmax; 0 when logprobs were not asked for
  std::vector<TokenLogprob> top;  // the most likely first
  std::vector<float> logits;      // n_vocab raw values when want_logits
  std::optional<Error> error;     // set: this sequence failed (NaN logits), the others are fine
};

// The log-probability of a prompt token at `position` given those before it.
struct PromptLogprob {
  SequenceId id = 0;
  int position = 0;
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

struct StepResult {
  StepId step = 0;
  std::vector<SampledToken> tokens;
  std::vector<PromptLogprob> prompt;
  int64_t compute_ns = 0;  // that the step took the rank which says so, without waiting for other stages
  int64_t meeting_ns = 0;  // of these, in the meetings of its stage: it did not compute
};

// One line each, for logs and scenario tests.
std::string ToString(const StepPlan& plan);
std::string ToString(const StepResult& result);

}  // namespace shoal
