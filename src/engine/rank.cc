#include "engine/rank.h"

#include <algorithm>
#include <string>

#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/sampler.h"

namespace shoal {
namespace {

std::unexpected<Error> BadPlan(const std::string& what) {
  return Fail(Code::kInternal, reasons::kBadFrame, "the head sent a step that this rank cannot carry out: " + what);
}

}  // namespace

Rank::Rank(const ModelSpec& spec, int kv_blocks, Collective& collective, std::unique_ptr<Executor> executor)
    : n_vocab_(static_cast<int>(spec.n_vocab)),
      kv_blocks_(kv_blocks),
      collective_(collective),
      executor_(std::move(executor)) {}

Result<std::unique_ptr<Rank>> Rank::Load(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                         Collective& collective, const ExecutorOptions& options) {
  SHOAL_ASSIGN(auto executor, Executor::Load(spec, source, plan, collective, options));
  return std::unique_ptr<Rank>(new Rank(spec, plan.kv_blocks, collective, std::move(executor)));
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

// Lays the chunks out as rows; checks every claim of the plan against what this rank holds.
Status Rank::LayOut(const StepPlan& plan) {
  tokens_.clear();
  segments_.clear();
  uses_.clear();
  logit_rows_.clear();
  drawn_.clear();
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
    const auto known = static_cast<int64_t>(sequence.tokens.size());
    const int64_t end = int64_t{chunk.first} + chunk.count;
    if (chunk.first < 0 || chunk.count < 1 || end > known) return BadPlan("rows beyond the sequence's tokens");
    if (chunk.sample && end != known) return BadPlan("a draw before the last known token");
    if (!chunk.draft.empty() && !chunk.sample) return BadPlan("a draft that is not to be drawn");
    for (TokenId token : chunk.draft)
      if (token < 0 || token >= n_vocab_)
        return BadPlan("token " + std::to_string(token) + " is not in the vocabulary");
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
void Rank::Draw(std::span<const float> logits, StepResult& result) {
  SequenceId refused = 0;
  for (size_t i = 0; i < uses_.size(); ++i) {
    const LogitUse& use = uses_[i];
    Sequence& sequence = sequences_.at(use.id);
    const auto row = logits.subspan(i * static_cast<size_t>(n_vocab_), static_cast<size_t>(n_vocab_));
    if (!use.sample) {
      const TokenId token = sequence.tokens[use.position];
      auto found = ComputeLogprobs(row, token, std::max(0, sequence.sampling.logprobs));
      result.prompt.push_back({use.id, use.position, {token, found.chosen}, std::move(found.top)});
      continue;
    }
    if (use.id == refused) {
      drawn_.push_back(-1);
      continue;
    }
    SampledToken drawn = Sample(row, sequence.sampling, sequence.tokens, sequence.prompt_length, sequence.forbidden);
    drawn.id = use.id;
    drawn.position = use.position;
    if (sequence.sampling.want_logits) drawn.logits.assign(row.begin(), row.end());
    drawn_.push_back(drawn.error ? -1 : drawn.token);
    if (drawn_.back() >= 0) sequence.tokens.push_back(drawn.token);
    if (drawn_.back() != use.guess) refused = use.id;
    result.tokens.push_back(std::move(drawn));
  }
}

// Tells every rank which tokens were drawn: 4 bytes for each sampled row, so that the plan tells each rank how many come.
Status Rank::ShareTokens() {
  if (collective_.rank() != 0) {
    drawn_.resize(std::count_if(uses_.begin(), uses_.end(), [](const LogitUse& use) { return use.sample; }));
  }
  if (drawn_.empty()) return {};
  if (collective_.size() == 1) return {};
  SHOAL_RETURN_IF_ERROR(collective_.Broadcast(0, std::as_writable_bytes(std::span(drawn_))));
  if (collective_.rank() == 0) return {};
  size_t next = 0;
  for (const auto& use : uses_)
    if (use.sample)
      if (const TokenId token = drawn_[next++]; token >= 0 && token < n_vocab_)
        sequences_.at(use.id).tokens.push_back(token);
  return {};
}

Result<StepResult> Rank::Execute(const StepPlan& plan) {
  StepResult result;
  result.step = plan.step;
  SHOAL_RETURN_IF_ERROR(TakeStarts(plan));
  SHOAL_RETURN_IF_ERROR(LayOut(plan));
  if (tokens_.empty()) return result;
  const Time begin = Now();
  SHOAL_ASSIGN(const auto logits, executor_->Forward({tokens_, segments_, logit_rows_}));
  if (collective_.rank() == 0) Draw(logits, result);
  SHOAL_RETURN_IF_ERROR(ShareTokens());
  result.compute_ns = (Now() - begin).count();
  return result;
}

}  // namespace shoal
