#include "sim/pretend_group.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "core/limits.h"
#include "core/reasons.h"

namespace shoal::sim {
namespace {

constexpr int kBlock = limits::kBlockTokens;

// splitmix64: a good mix of one word.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint64_t Extend(uint64_t history, TokenId token) { return Mix(history ^ (static_cast<uint64_t>(token) + 1)); }

PretendDraw DrawFrom(const PretendOptions& options, uint64_t history, std::span<const TokenId> tokens,
                     std::span<const TokenId> forbidden) {
  const uint64_t hash = Mix(history);
  PretendDraw draw;
  draw.token = static_cast<TokenId>(hash % static_cast<uint64_t>(options.vocabulary));
  if (options.repeat > 0 && tokens.size() >= static_cast<size_t>(options.repeat) && (hash >> 40) % 8 != 0)
    draw.token = tokens[tokens.size() - static_cast<size_t>(options.repeat)];
  if (options.end_one_in > 0 && (hash >> 32) % static_cast<uint64_t>(options.end_one_in) == 0)
    draw.token = options.end_token;
  draw.error = options.error_one_in > 0 && (hash >> 20) % static_cast<uint64_t>(options.error_one_in) == 0;
  while (std::find(forbidden.begin(), forbidden.end(), draw.token) != forbidden.end())
    draw.token = (draw.token + 1) % options.vocabulary;
  return draw;
}

std::unexpected<Error> BadPlan(StepId step, SequenceId id, std::string what) {
  return Fail(Code::kInternal, reasons::kBadFrame, "the plan contradicts what the ranks hold",
              "step " + std::to_string(step) + ", sequence " + std::to_string(id) + ": " + std::move(what));
}

}  // namespace

PretendDraw DrawPretend(const PretendOptions& options, std::span<const TokenId> history,
                        std::span<const TokenId> forbidden) {
  uint64_t hash = options.seed;
  for (const TokenId token : history) hash = Extend(hash, token);
  return DrawFrom(options, hash, history, forbidden);
}

float PretendLogprob(TokenId token, int position) {
  const uint64_t hash = Mix(static_cast<uint64_t>(token) * 1'000'003u + static_cast<uint64_t>(position));
  return -static_cast<float>(hash % 4096) / 512.0f;
}

PretendGroup::PretendGroup(PretendOptions options) : options_(std::move(options)) {
  for (int stage = 0; stage < options_.stages; ++stage)
    info_.plan.ranks.push_back({.slices = {}, .first_layer = stage, .last_layer = stage + 1});
  info_.plan.kv_blocks = options_.kv_blocks;
  info_.plan.reasons = {"pretend"};
  info_.ranks.resize(static_cast<size_t>(options_.stages), RankInfo{.node = "pretend"});
  info_.kernel = "pretend";
  cache_.resize(static_cast<size_t>(options_.kv_blocks) * kBlock);
  holders_.resize(static_cast<size_t>(options_.kv_blocks));
}

Status PretendGroup::Start(const StepPlan& plan) {
  if (closed_) return Fail(Code::kUnavailable, reasons::kGroupClosed, "the group is closed");
  if (plan.step == options_.fail_start_at) {
    closed_ = true;
    return Fail(Code::kUnavailable, reasons::kPeerLost, "a pretend rank was lost");
  }
  Started started{.plan = plan, .result = {}, .ready = Now() + options_.delay};
  if (auto computed = Compute(plan, started.result); !computed) {
    closed_ = true;
    return computed;
  }
  started_.push_back(std::move(started));
  return {};
}

Result<StepResult> PretendGroup::Wait(Deadline deadline) {
  if (closed_) return Fail(Code::kUnavailable, reasons::kGroupClosed, "the group is closed");
  if (started_.empty()) return Fail(Code::kInternal, reasons::kInternal, "no step was started");
  Started started = std::move(started_.front());
  started_.pop_front();
  if (options_.on_wait) options_.on_wait(started.plan);
  if (options_.delay > Nanos{0}) std::this_thread::sleep_until(std::min(started.ready, deadline.at));
  if (started.plan.step == options_.fail_wait_at || Now() < started.ready) {
    closed_ = true;
    return Fail(Code::kUnavailable, reasons::kPeerLost, "a pretend rank was lost");
  }
  return std::move(started.result);
}

Status PretendGroup::Compute(const StepPlan& plan, StepResult& result) {
  result.step = plan.step;
  if (plan.step != last_step_ + 1) return BadPlan(plan.step, 0, "follows step " + std::to_string(last_step_));
  last_step_ = plan.step;
  if (plan.chunks.empty()) return BadPlan(plan.step, 0, "computes nothing");
  if (plan.rows() > limits::kMaxStepRows) return BadPlan(plan.step, 0, "too many rows");
  if (plan.chunks.size() > static_cast<size_t>(limits::kMaxStepSequences))
    return BadPlan(plan.step, 0, "too many sequences");
  for (const SequenceId id : plan.removed) SHOAL_RETURN_IF_ERROR(Forget(id));
  for (const auto& start : plan.added) SHOAL_RETURN_IF_ERROR(Begin(start));
  for (const auto& chunk : plan.chunks) SHOAL_RETURN_IF_ERROR(ComputeChunk(chunk, result));
  result.compute_ns = (options_.base + options_.row * plan.rows()).count();
  return {};
}

Status PretendGroup::Forget(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return BadPlan(last_step_, id, "is removed but was never added");
  for (const BlockId block : found->second.blocks) --holders_[static_cast<size_t>(block)];
  sequences_.erase(found);
  return {};
}

Status PretendGroup::Begin(const SequenceStart& start) {
  Sequence sequence{.tokens = start.tokens,
                    .prompt_length = start.prompt_length,
                    .computed = 0,
                    .sampling = start.sampling,
                    .forbidden = start.forbidden,
                    .blocks = {}};
  if (start.tokens.empty() || start.prompt_length < 1 || start.prompt_length > static_cast<int>(start.tokens.size()))
    return BadPlan(last_step_, start.id, "starts without a prompt");
  if (!sequences_.emplace(start.id, std::move(sequence)).second) return BadPlan(last_step_, start.id, "starts twice");
  return {};
}

// A sequence that begins behind a prefix that is said to lie in its blocks already.
Status PretendGroup::Resume(const SequenceChunk& chunk, Sequence& sequence) {
  if (sequence.sampling.prompt_logprobs) return BadPlan(last_step_, chunk.id, "skips log-probabilities that it owes");
  if (chunk.first >= static_cast<int>(sequence.tokens.size()) ||
      chunk.first > static_cast<int>(sequence.blocks.size()) * kBlock)
    return BadPlan(last_step_, chunk.id, "begins beyond its tokens or blocks");
  uint64_t history = options_.seed;
  for (int position = 0; position < chunk.first; ++position) {
    history = Extend(history, sequence.tokens[static_cast<size_t>(position)]);
    if (Cell(sequence, position) != history)
      return BadPlan(last_step_, chunk.id, "is given a prefix that is not its own");
  }
  sequence.computed = chunk.first;
  return {};
}

uint64_t& PretendGroup::Cell(const Sequence& sequence, int position) {
  const BlockId block = sequence.blocks[static_cast<size_t>(position / kBlock)];
  return cache_[static_cast<size_t>(block) * kBlock + static_cast<size_t>(position % kBlock)];
}

Status PretendGroup::ComputeChunk(const SequenceChunk& chunk, StepResult& result) {
  const auto found = sequences_.find(chunk.id);
  if (found == sequences_.end()) return BadPlan(last_step_, chunk.id, "is not held");
  Sequence& sequence = found->second;
  SHOAL_RETURN_IF_ERROR(TakeTokens(chunk, sequence));
  for (const BlockId block : chunk.new_blocks) {
    if (block < 0 || block >= options_.kv_blocks) return BadPlan(last_step_, chunk.id, "has a block outside the pool");
    ++holders_[static_cast<size_t>(block)];
    sequence.blocks.push_back(block);
  }
  if (sequence.computed == 0 && chunk.first > 0) SHOAL_RETURN_IF_ERROR(Resume(chunk, sequence));
  const int total = static_cast<int>(sequence.tokens.size());
  const int end = chunk.first + chunk.count;
  if (chunk.first != sequence.computed || chunk.count < 1 || end > total)
    return BadPlan(last_step_, chunk.id, "has rows that do not follow");
  const int last = chunk.first + chunk.rows();
  if (last > static_cast<int>(sequence.blocks.size()) * kBlock)
    return BadPlan(last_step_, chunk.id, "has rows without a block");

  if (!chunk.draft.empty() && (!chunk.sample || chunk.draft.size() > static_cast<size_t>(kMaxDraft)))
    return BadPlan(last_step_, chunk.id, "has guesses that cannot be verified");
  for (int block = chunk.first / kBlock; block * kBlock < last; ++block)
    if (holders_[static_cast<size_t>(sequence.blocks[static_cast<size_t>(block)])] != 1)
      return BadPlan(last_step_, chunk.id, "writes a block that others hold");
  uint64_t history = chunk.first == 0 ? options_.seed : Cell(sequence, chunk.first - 1);
  for (int position = chunk.first; position < end; ++position) {
    history = Extend(history, sequence.tokens[static_cast<size_t>(position)]);
    Cell(sequence, position) = history;
    if (sequence.sampling.prompt_logprobs && position + 1 < sequence.prompt_length) {
      const TokenId next = sequence.tokens[static_cast<size_t>(position) + 1];
      result.prompt.push_back({chunk.id, position + 1, {next, PretendLogprob(next, position + 1)}, {}});
    }
  }
  sequence.computed = end;
  if (chunk.sample && end != total) return BadPlan(last_step_, chunk.id, "samples before its last token");
  if (!chunk.sample) return {};
  // The rows of the guesses are computed before it is known whether they are right.
  std::vector<uint64_t> rows{history};
  for (const TokenId guess : chunk.draft) {
    rows.push_back(Extend(rows.back(), guess));
    Cell(sequence, end + static_cast<int>(rows.size()) - 2) = rows.back();
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!Draw(chunk.id, sequence, rows[i], result)) break;
    if (i == chunk.draft.size() || sequence.tokens.back() != chunk.draft[i]) break;
    ++sequence.computed;
  }
  sequence.drawn.assign(sequence.tokens.begin() + total, sequence.tokens.end());
  sequence.tokens.resize(static_cast<size_t>(total));
  return {};
}

// What was drawn must come back, all of it and nothing else.
Status PretendGroup::TakeTokens(const SequenceChunk& chunk, Sequence& sequence) {
  if (chunk.new_tokens != sequence.drawn) return BadPlan(last_step_, chunk.id, "is told other tokens than were drawn");
  sequence.tokens.insert(sequence.tokens.end(), sequence.drawn.begin(), sequence.drawn.end());
  sequence.drawn.clear();
  return {};
}

bool PretendGroup::Draw(SequenceId id, Sequence& sequence, uint64_t history, StepResult& result) {
  const PretendDraw draw = DrawFrom(options_, history, sequence.tokens, sequence.forbidden);
  const int position = static_cast<int>(sequence.tokens.size());
  SampledToken token;
  token.id = id;
  token.position = position;
  token.token = draw.token;
  if (options_.force) token.token = options_.force(id, position).value_or(draw.token);
  if (draw.error)
    token.error =
        MakeError(Code::kInternal, reasons::kModelProducedNan, "the model produced a value that is no number");
  if (sequence.sampling.logprobs >= 0) {
    token.logprob = PretendLogprob(token.token, position);
    for (int i = 0; i < sequence.sampling.logprobs; ++i)
      token.top.push_back({(token.token + i) % options_.vocabulary, token.logprob - static_cast<float>(i)});
  }
  if (sequence.sampling.want_logits)
    for (TokenId other = 0; other < options_.vocabulary; ++other)
      token.logits.push_back(PretendLogprob(other, position));
  sequence.tokens.push_back(token.token);
  result.tokens.push_back(std::move(token));
  return !draw.error;
}

}  // namespace shoal::sim
