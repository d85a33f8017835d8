#include "engine/rank.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <string>

#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/sampler.h"

namespace shoal {
namespace {

// What a logit costs to draw from at least, in multiplications of a product (compute/program.h); several times that with a
// temperature.
constexpr int64_t kDrawWork = 16;

std::unexpected<Error> BadPlan(const std::string& what) {
  return Fail(Code::kInternal, reasons::kBadFrame, "the head sent a step that this rank cannot carry out: " + what);
}

// Every rank of a stage has the same rows, so each rank behind takes them from one of those before, in turn.
Pipeline PipelineOf(const std::vector<Stage>& stages, size_t own, int place, Collective* group) {
  Pipeline pipeline{.group = group, .last = own + 1 == stages.size()};
  if (own > 0) pipeline.from = stages[own - 1].first_rank + place % stages[own - 1].ranks;
  if (pipeline.last) return pipeline;
  for (int next = place; next < stages[own + 1].ranks; next += stages[own].ranks)
    pipeline.to.push_back(stages[own + 1].first_rank + next);
  return pipeline;
}

}  // namespace

Rank::Rank(const ModelSpec& spec, int kv_blocks, bool draws, std::unique_ptr<Executor> executor)
    : n_vocab_(static_cast<int>(spec.n_vocab)),
      kv_blocks_(kv_blocks),
      draws_(draws),
      executor_(std::move(executor)),
      drawing_(executor_->threads(), failure_) {
  drawing_.Add(
      Workers::kDealt,
      [this](int ith, int nth) {
        const auto part = PartOf(static_cast<int64_t>(drawn_.size()), ith, nth);
        for (int64_t i = part.first; i < part.last; ++i) DrawOf(drawn_[static_cast<size_t>(i)]);
      },
      [this](int sequences) { return sequences > 1 ? kDrawWork * n_vocab_ * static_cast<int64_t>(uses_.size()) : 0; });
}

Result<std::unique_ptr<Rank>> Rank::Load(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan, int rank,
                                         RankLinks links, const ExecutorOptions& options) {
  SHOAL_RETURN_IF_ERROR(CheckShardPlan(plan, spec.n_layers));
  SHOAL_CHECK(rank >= 0 && rank < plan.size());
  const std::vector<Stage> stages = StagesOf(plan);
  size_t own = 0;
  while (rank >= stages[own].first_rank + stages[own].ranks) ++own;
  ExecutorOptions with_pipeline = options;
  with_pipeline.pipeline = PipelineOf(stages, own, rank - stages[own].first_rank, links.group);
  SHOAL_ASSIGN(auto executor, Executor::Load(spec, source, StagePlan(plan, stages[own]), links.stage, with_pipeline));
  return std::unique_ptr<Rank>(new Rank(spec, plan.kv_blocks, rank == DrawingRank(plan), std::move(executor)));
}

Status Rank::TakeStarts(const StepPlan& plan) {
  for (SequenceId id : plan.removed) sequences_.erase(id);
  for (const auto& start : plan.added) {
    if (start.prompt_length < 1 || start.prompt_length > static_cast<int>(start.tokens.size()))
      return BadPlan("sequence " + std::to_string(start.id) + " has no sound prompt length");
    for (TokenId token : start.tokens)
      if (token < 0 || token >= n_vocab_)
        return BadPlan("token " + std::to_string(token) + " is not in the vocabulary");
    auto [place, fresh] = sequences_.try_emplace(start.id);
    if (!fresh) return BadPlan("sequence " + std::to_string(start.id) + " is already here");
    place->second = {start.tokens, start.prompt_length, start.sampling, start.forbidden, {}, 0};
  }
  return {};
}

Status Rank::TakeTokens(const SequenceChunk& chunk, Sequence& sequence) const {
  if (sequence.tokens.size() + chunk.new_tokens.size() > size_t{limits::kMaxContext})
    return BadPlan("more tokens than a sequence may have");
  for (const auto& tokens : {std::cref(chunk.new_tokens), std::cref(chunk.draft)})
    for (const TokenId token : tokens.get())
      if (token < 0 || token >= n_vocab_)
        return BadPlan("token " + std::to_string(token) + " is not in the vocabulary");
  sequence.tokens.insert(sequence.tokens.end(), chunk.new_tokens.begin(), chunk.new_tokens.end());
  return {};
}

// Lays the chunks out as rows; checks every claim of the plan against what this rank holds.
Status Rank::LayOut(const StepPlan& plan) {
  tokens_.clear();
  segments_.clear();
  uses_.clear();
  logit_rows_.clear();
  if (plan.chunks.size() > size_t{limits::kMaxStepSequences}) return BadPlan("more sequences than a step may have");
  for (const auto& chunk : plan.chunks)  // before they are summed
    if (chunk.count > limits::kMaxStepRows) return BadPlan("more rows than a step may have");
  if (plan.rows() > limits::kMaxStepRows) return BadPlan("more rows than a step may have");
  for (const auto& chunk : plan.chunks) {
    const auto found = sequences_.find(chunk.id);
    if (found == sequences_.end()) return BadPlan("sequence " + std::to_string(chunk.id) + " is unknown");
    Sequence& sequence = found->second;
    if (sequence.laid_out == plan.step) return BadPlan("sequence " + std::to_string(chunk.id) + " appears twice");
    sequence.laid_out = plan.step;
    SHOAL_RETURN_IF_ERROR(TakeTokens(chunk, sequence));
    const auto known = static_cast<int64_t>(sequence.tokens.size());
    const int64_t end = int64_t{chunk.first} + chunk.count;
    if (chunk.first < 0 || chunk.count < 1 || end > known) return BadPlan("rows beyond the sequence's tokens");
    if (chunk.sample && end != known) return BadPlan("a draw before the last known token");
    if (!chunk.draft.empty() && !chunk.sample) return BadPlan("a draft that is not to be drawn");
    for (BlockId block : chunk.new_blocks)
      if (block < 0 || block >= kv_blocks_) return BadPlan("block " + std::to_string(block) + " is not in the pool");
    sequence.blocks.insert(sequence.blocks.end(), chunk.new_blocks.begin(), chunk.new_blocks.end());
    if (static_cast<int64_t>(sequence.blocks.size()) * limits::kBlockTokens < int64_t{chunk.first} + chunk.rows())
      return BadPlan("too few blocks");

    const int first_row = static_cast<int>(tokens_.size());
    tokens_.insert(tokens_.end(), sequence.tokens.begin() + chunk.first, sequence.tokens.begin() + end);
    tokens_.insert(tokens_.end(), chunk.draft.begin(), chunk.draft.end());
    segments_.push_back({first_row, chunk.rows(), chunk.first, sequence.blocks});
    if (sequence.sampling.prompt_logprobs)
      for (int i = 0; i < chunk.count; ++i)
        if (const int about = chunk.first + i + 1; about < sequence.prompt_length)
          uses_.push_back({chunk.id, first_row + i, about, false});
    if (!chunk.sample) continue;
    for (size_t i = 0; i <= chunk.draft.size(); ++i) {
      const int ahead = static_cast<int>(i);
      const TokenId guess = i < chunk.draft.size() ? chunk.draft[i] : -1;
      uses_.push_back({chunk.id, first_row + chunk.count - 1 + ahead, static_cast<int>(end) + ahead, true, guess});
    }
  }
  for (const auto& use : uses_) logit_rows_.push_back(use.row);
  return {};
}

// Position by position: a guess that was not drawn makes the rows behind it worthless.
void Rank::DrawOf(Draws& draws) {
  Sequence& sequence = sequences_.at(uses_[draws.first].id);
  for (size_t i = draws.first; i < draws.last; ++i) {
    const LogitUse& use = uses_[i];
    const auto row = logits_.subspan(i * static_cast<size_t>(n_vocab_), static_cast<size_t>(n_vocab_));
    if (!use.sample) {
      const TokenId token = sequence.tokens[use.position];
      auto found = ComputeLogprobs(row, token, std::max(0, sequence.sampling.logprobs));
      draws.prompt.push_back({use.id, use.position, {token, found.chosen}, std::move(found.top)});
      continue;
    }
    SampledToken drawn = Sample(row, sequence.sampling, sequence.tokens, sequence.prompt_length, sequence.forbidden);
    drawn.id = use.id;
    drawn.position = use.position;
    if (sequence.sampling.want_logits) drawn.logits.assign(row.begin(), row.end());
    const bool as_guessed = !drawn.error && drawn.token == use.guess;
    if (!drawn.error) sequence.tokens.push_back(drawn.token);  // the next draw looks back at it
    draws.tokens.push_back(std::move(drawn));
    if (!as_guessed) return;
  }
}

// Sequences have nothing to do with each other: the rank's threads share them out.
Status Rank::Draw(const StepPlan& plan, StepResult& result) {
  drawn_.clear();
  for (size_t i = 0; i < uses_.size(); ++i) {
    if (i == 0 || uses_[i].id != uses_[i - 1].id) drawn_.push_back({i, i, {}, {}});
    drawn_.back().last = i + 1;
  }
  failure_.Clear();
  SHOAL_RETURN_IF_ERROR(drawing_.Run(static_cast<int>(drawn_.size())));
  for (Draws& draws : drawn_) {
    std::ranges::move(draws.prompt, std::back_inserter(result.prompt));
    std::ranges::move(draws.tokens, std::back_inserter(result.tokens));
  }
  // What becomes of the draws is the head's decision.
  for (const auto& chunk : plan.chunks)
    if (chunk.sample) sequences_.at(chunk.id).tokens.resize(static_cast<size_t>(chunk.first + chunk.count));
  return {};
}

Result<StepResult> Rank::Execute(const StepPlan& plan) {
  StepResult result;
  result.step = plan.step;
  SHOAL_RETURN_IF_ERROR(TakeStarts(plan));
  SHOAL_RETURN_IF_ERROR(LayOut(plan));
  if (tokens_.empty()) return result;
  const Time begin = Now();
  SHOAL_ASSIGN(logits_, executor_->Forward({tokens_, segments_, logit_rows_, plan.overlap}));
  if (draws_) SHOAL_RETURN_IF_ERROR(Draw(plan, result));
  const StepWaits waits = executor_->waits();
  result.compute_ns = (Now() - begin - waits.stages).count();
  result.meeting_ns = waits.stage.count();
  return result;
}

}  // namespace shoal
