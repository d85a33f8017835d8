// What: decides what each step computes: requests and KV blocks in, the next StepPlan out.
//
//     Add ──▶ waiting ──admit──▶ running ──▶ finished        one loop of the owner:
//                ▲                  │                           decision = Schedule();  start decision.plan
//                └────pre-empt──────┘                           Apply(result of the step)
//
// There is no prefill and no decode: each running sequence lets `computed` catch up with its tokens. A step
// is filled in passes, each in arrival order, under one budget of rows:
//   1. endings: cancelled and stopped sequences give their blocks back;
//   2. running sequences take rows; one row stays reserved for every running sequence behind, so that each
//   moves in each step;
//   3. waiting sequences are admitted, strictly in arrival order, unless their prefix is just being computed;
//   4. with nothing to compute, a prompt in flight goes on (see below).
// A new feature is a new field or a new pass.
//
// With prefix_cache, each full block is remembered by its tokens and what came before them (sched/prefix_cache.h). A
// sequence that is admitted takes the blocks of its longest known prefix and begins behind them; at least one token is left
// to compute, from whose row the next one is drawn. Such a block is full and thus never written again; it may be held by
// several sequences, and is kept when nobody holds it, until its place is needed. Only what was applied is remembered: a
// step in flight can still fail. A pre-empted sequence finds its own blocks again, if they are not taken. With one step in
// flight the head of the line waits while a running sequence is about to compute the block that it needs next: the prompt of
// several choices, or one that several clients begin with, is computed once.
//
// When blocks run out, the youngest running sequence is pre-empted for an older one: its tokens are kept, its
// blocks are not, and it returns to its place in the line (before everything that arrived later), to be
// computed again. A sequence never takes blocks from an older one: it stalls, keeping what it has, until the
// older ones finish. A waiting sequence is admitted when the free blocks that are not promised to running
// ones hold all its tokens and the next. The head of the line is never passed: a large request waits for
// running ones to finish, not for all the small ones that come after it. That costs some idle blocks
// (head-of-line blocking) and buys that nothing starves.
//
// With max_draft, a last pass proposes tokens to sequences that decode (sched/draft.h), from rows and blocks that nobody else
// wants: not in a step that computes prompts (its rows are dear), not when blocks are short. A proposal changes how many steps
// a sequence takes, never what comes out.
//
// With mixed_rows, prompts are computed in smaller pieces while other sequences decode, so that their next token does not wait
// for a long prompt: at most so many rows more than the decoding sequences have; measured (-1): as many as keep the step within
// twice the time of one without them, by the compute_ns of earlier results. Each running sequence still moves in each step.
//
// With overlap, big steps are computed in parts where that was measured to pay (sched/overlap.h).
//
// Several steps may be in flight (steps_at_once): Schedule takes only so many sequences that each of the steps gets its part of
// them, and leaves alone what is in flight. Only where a step would be empty, the next rows of a prompt follow those that are still
// in flight (stages compute steps in order), so that a single prompt keeps all stages of a pipeline busy; it is cut in pieces for
// that. A row that draws is the last that a sequence has in flight.
//
// Owns: the requests, their tokens, the block pool.
// Threads: none; the owner's. Pure: no clock, no log, no randomness. The same calls give the same plans.
// Limits: SchedulerOptions. Add, Cancel, Finish: O(log n); Schedule, Apply: O(rows + log n) per sequence in the
// step; an admission besides compares a block with each running sequence, and a prefix with those that have that block.
// Fails: Add refuses by value; Apply refuses a result that does not answer the oldest step in flight, changing
// nothing.
// Reads next: core/step.h, sched/block_pool.h, sched/admission.h, tests/scenario/README.md.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "core/request.h"
#include "core/step.h"
#include "sched/admission.h"
#include "sched/block_pool.h"
#include "sched/draft.h"
#include "sched/overlap.h"
#include "sched/prefix_cache.h"
#include "sched/step_cost.h"

namespace shoal {

// A sequence has ended. Nothing about it follows.
struct Finished {
  SequenceId id = 0;
  FinishReason reason = FinishReason::kStop;
  std::optional<Error> error;  // with kError
};

// What kept the head of the waiting line out of this step.
enum class Obstacle {
  kNone,
  kSequences,
  kRows,
  kBlocks,
  kPrefix
};  // kPrefix: a sequence that runs computes its beginning

// One answer of Schedule: the plan, and what was decided on the way.
struct Decision {
  StepPlan plan;                      // without chunks: there is nothing to compute, do not start it
  std::vector<SequenceId> admitted;   // waiting -> running, some of them again
  std::vector<SequenceId> preempted;  // running -> waiting
  std::vector<SequenceId> stalled;    // running, but no block was left for one more row
  std::vector<Finished> finished;     // cancelled or stopped from outside
  SequenceId held_back = 0;           // the head of the waiting line; 0 = nobody waits
  Obstacle obstacle = Obstacle::kNone;
};
std::string ToString(const Decision& decision);

// One answer of Apply.
struct Applied {
  std::vector<size_t> accepted;  // indices into result.tokens that joined their sequences; the others came too late
  std::vector<Finished> finished;
};

struct SchedulerStats {
  int waiting = 0;
  int running = 0;
  int blocks = 0;
  int blocks_free = 0;           // nobody holds them; some of these are kept
  int blocks_kept = 0;           // for whoever begins with the same tokens
  uint64_t cached_tokens = 0;    // found in the prefix cache instead of computed
  uint64_t prompt_tokens = 0;    // computed for the first time
  uint64_t recomputed_rows = 0;  // computed again after a pre-emption
  uint64_t generated_tokens = 0;
  uint64_t proposed_tokens = 0;  // by drafts, and how many of these were drawn
  uint64_t accepted_tokens = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;             // scheduled
  uint64_t steps_overlapped = 0;  // of these, in parts
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // The request joins the end of the waiting line. Ids ascend in arrival order, from 1.
  Result<SequenceId> Add(Request request);
  // Ends a sequence from outside (Cancel: kCancelled). It computes nothing any more and is reported as
  // finished by the next Schedule, or, where steps of it are in flight, by the Apply of the last, whose token is
  // dropped. The first reason counts. False: no such sequence.
  bool Cancel(SequenceId id) { return Finish(id, FinishReason::kCancelled); }
  bool Finish(SequenceId id, FinishReason reason);

  // The ranks are new and hold nothing (another group, another epoch): steps in flight are void, what ran waits again, and no
  // block is known any more. Requests and tokens stay; steps are numbered from 1 again. For recovery, which is still to come (docs:
  // ARCHITECTURE.md, Life of a failure): the engine does not call it yet, the scenario test's failures do.
  void Reset();

  Decision Schedule();
  Result<Applied> Apply(const StepResult& result);

  SchedulerStats stats() const;
  const SchedulerOptions& options() const { return options_; }
  bool empty() const { return sequences_.empty(); }
  int steps_in_flight() const { return static_cast<int>(in_flight_.size()); }
  std::vector<SequenceId> waiting() const;
  std::vector<SequenceId> running() const;
  // All known tokens, prompt first; null when there is no such sequence.
  const std::vector<TokenId>* tokens(SequenceId id) const;
  // Tokens of the prompt that were found in the prefix cache when the sequence was first admitted.
  int cached_prompt(SequenceId id) const;

  // Nothing, or the invariant that is broken. O(everything): for tests.
  std::optional<std::string> Check() const;

 private:
  struct Sequence {
    Request request;  // its prompt moves into `tokens`
    std::vector<TokenId> tokens;
    int prompt_length = 0;
    int computed = 0;         // rows whose K and V lie in the blocks
    int planned = 0;          // and those that are in flight
    int found = 0;            // rows that were there when it was last admitted
    int computed_before = 0;  // most rows ever computed: what lies below is recomputation
    std::vector<BlockId> blocks;
    size_t told = 0;           // the first blocks, which the ranks know
    int remembered = 0;        // the first blocks, which the prefix cache was told of
    PrefixCache::Place place;  // behind those
    int cached_prompt = 0;
    DraftChance chance;
    bool running = false;
    bool held = false;    // the ranks know it
    int told_tokens = 0;  // the first tokens, which they know too
    int in_flight = 0;    // steps
    std::optional<FinishReason> ending;

    int total() const { return static_cast<int>(tokens.size()); }
    int generated() const { return total() - prompt_length; }
  };
  struct StepInFlight {
    StepId step = 0;
    std::vector<SequenceChunk> chunks;
    bool overlap = false;
  };
  using Line = std::map<SequenceId, Sequence*>;  // arrival order

  // Rows of the next step: the budget, or less while sequences decode.
  int RowBudget() const;
  int Active() const;  // sequences that run or could
  // Sequences of the next step at most.
  int SequenceBudget() const;
  // Rows of the sequence in one step at most.
  int PieceRows(const Sequence& sequence) const;
  void EndPass(Decision& decision);
  void RunningPass(Decision& decision, int& rows, int most);
  void AdmitPass(Decision& decision, int& rows, int most);
  bool ComesSoon(const Sequence& sequence, size_t known) const;
  void FollowPass(Decision& decision, int rows);
  void DraftPass(Decision& decision);
  // Rows of the sequence that fit into its own blocks and the free ones, at most `want`; pre-empts younger
  // ones for the first.
  int FitRows(SequenceId id, Sequence& sequence, int want, Decision& decision, int& behind);
  bool PreemptYoungerThan(SequenceId id, Decision& decision);
  void LetGo(SequenceId id, Sequence& sequence);  // of its blocks and of the ranks' memory
  int Promised() const;  // blocks that running sequences will take for their known tokens and one more
  PrefixCache::Match FindPrefix(const Sequence& sequence) const;
  void Begin(Sequence& sequence, PrefixCache::Match prefix);
  void Remember(Sequence& sequence);
  void TellBlocks(Sequence& sequence, SequenceChunk& chunk);
  void CountRows(const SequenceChunk& chunk, Sequence& sequence);
  void CountStep(const StepInFlight& step, const StepResult& result);
  bool WantsPromptLogprobs(const Sequence& sequence) const;
  void PlanRows(SequenceId id, Sequence& sequence, int count, Decision& decision);
  void TakeTokens(const SequenceChunk& chunk, std::span<const SampledToken> tokens, const StepResult& result,
                  Applied& applied);
  void Retire(SequenceId id, FinishReason reason, std::optional<Error> error, std::vector<Finished>& out);
  int MostRows(const Sequence& sequence) const;     // that will ever be computed
  int BlocksAhead(const Sequence& sequence) const;  // for all its tokens and the next
  Status CheckResult(const StepInFlight& step, const StepResult& result,
                     std::vector<std::span<const SampledToken>>& by_chunk) const;
  Status CheckTokens(StepId step, const SequenceChunk& chunk, std::span<const SampledToken> tokens) const;
  std::optional<FinishReason> EndOf(const Sequence& sequence, TokenId last) const;

  const SchedulerOptions options_;
  BlockPool pool_;
  PrefixCache cache_;
  std::unordered_map<SequenceId, Sequence> sequences_;  // nodes never move: the lines point at them
  Line waiting_;
  Line running_;
  std::vector<SequenceId> ending_;   // asked to end since the last Schedule
  std::vector<SequenceId> removed_;  // held by the ranks, to be forgotten with the next step
  std::deque<StepInFlight> in_flight_;
  SequenceId last_id_ = 0;
  StepId last_step_ = 0;
  SchedulerStats counts_;
  StepCost decode_cost_;  // of steps whose rows all draw
  StepCost mixed_cost_;   // of steps with prompt rows
  OverlapChoice overlap_;
};

}  // namespace shoal
