#include "sched/scheduler.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "core/reasons.h"

namespace shoal {
namespace {

SchedulerOptions Bounded(SchedulerOptions options) {
  SHOAL_CHECK(options.kv_blocks >= 1 && options.context >= 1 && options.vocabulary >= 1);
  options.max_step_rows = std::clamp(options.max_step_rows, 1, limits::kMaxStepRows);
  options.max_sequences =
      std::clamp(options.max_sequences, 1, std::min(options.max_step_rows, limits::kMaxStepSequences));
  options.max_draft = std::clamp(options.max_draft, 0, kMaxDraft);
  options.steps_at_once = std::max(1, options.steps_at_once);
  return options;
}

std::unexpected<Error> BadResult(StepId step, std::string what) {
  return Fail(Code::kInternal, reasons::kInternal, "the ranks returned a result that does not answer their step",
              "step " + std::to_string(step) + ": " + std::move(what));
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options)
    : options_(Bounded(std::move(options))),
      pool_(options_.kv_blocks),
      cache_(options_.kv_blocks),
      overlap_(options_.overlap) {}

Result<SequenceId> Scheduler::Add(Request request) {
  SHOAL_RETURN_IF_ERROR(CheckRequest(request, options_));
  const SequenceId id = ++last_id_;
  Sequence& sequence = sequences_[id];
  sequence.request = std::move(request);
  sequence.tokens = std::move(sequence.request.prompt);
  sequence.request.prompt.clear();
  sequence.prompt_length = sequence.total();
  waiting_.emplace_hint(waiting_.end(), id, &sequence);
  return id;
}

bool Scheduler::Finish(SequenceId id, FinishReason reason) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return false;
  Sequence& sequence = found->second;
  if (!sequence.ending) {
    sequence.ending = reason;
    ending_.push_back(id);
  }
  return true;
}

Decision Scheduler::Schedule() {
  Decision decision;
  decision.plan.step = last_step_ + 1;
  EndPass(decision);
  int rows = RowBudget();
  const int most = SequenceBudget();
  RunningPass(decision, rows, most);
  AdmitPass(decision, rows, most);
  if (decision.plan.chunks.empty()) FollowPass(decision, rows);
  DraftPass(decision);
  if (decision.plan.chunks.empty()) return decision;

  ++last_step_;
  ++counts_.steps;
  decision.plan.removed = std::exchange(removed_, {});
  decision.plan.overlap = overlap_.Choose(decision.plan.rows());
  counts_.steps_overlapped += decision.plan.overlap;
  in_flight_.push_back({decision.plan.step, decision.plan.chunks, decision.plan.overlap});
  return decision;
}

void Scheduler::EndPass(Decision& decision) {
  for (const SequenceId id : std::exchange(ending_, {})) {
    const auto found = sequences_.find(id);
    // Gone: it ended by itself meanwhile. In flight: its Apply ends it.
    if (found == sequences_.end() || found->second.in_flight > 0) continue;
    Retire(id, *found->second.ending, std::nullopt, decision.finished);
  }
}

int Scheduler::Active() const {
  const int room = options_.max_sequences - static_cast<int>(running_.size());
  return static_cast<int>(running_.size()) + std::min(room, static_cast<int>(waiting_.size()));
}

int Scheduler::SequenceBudget() const {
  const auto in_flight = std::ranges::count_if(running_, [](const auto& entry) { return entry.second->in_flight > 0; });
  const int steps_left = std::max(1, options_.steps_at_once - steps_in_flight());
  return std::min(CeilDiv(Active(), options_.steps_at_once),
                  CeilDiv(Active() - static_cast<int>(in_flight), steps_left));
}

int Scheduler::PieceRows(const Sequence& sequence) const {
  if (Active() >= options_.steps_at_once) return options_.max_step_rows;
  // The first piece passes the stages alone, as does the last: the more there are, the less the stages wait. Smaller ones than
  // kLeast would read the weights more often than pays.
  constexpr int kLeast = 64;
  return std::max(kLeast, CeilDiv(sequence.total() - sequence.found, 2 * options_.steps_at_once));
}

void Scheduler::RunningPass(Decision& decision, int& rows, int most) {
  int behind = 0;  // running sequences that still want their row in this step
  for (const auto& [id, sequence] : running_) behind += sequence->in_flight == 0;
  behind = std::min(behind, most);
  // Pre-emption erases only younger entries, so the iterator stays good.
  for (auto at = running_.begin(); at != running_.end(); ++at) {
    const auto [id, sequence] = *at;
    if (sequence->in_flight > 0) continue;
    if (static_cast<int>(decision.plan.chunks.size()) == most) return;
    behind = std::max(0, behind - 1);
    const int want = std::min({sequence->total() - sequence->computed, rows - behind, PieceRows(*sequence)});
    const int count = FitRows(id, *sequence, want, decision, behind);
    if (count == 0) {
      decision.stalled.push_back(id);
      continue;
    }
    PlanRows(id, *sequence, count, decision);
    rows -= count;
  }
}

int Scheduler::FitRows(SequenceId id, Sequence& sequence, int want, Decision& decision, int& behind) {
  while (true) {
    const int blocks = static_cast<int>(sequence.blocks.size()) + pool_.free();
    const int64_t room = static_cast<int64_t>(blocks) * limits::kBlockTokens - sequence.computed;
    if (room > 0) return static_cast<int>(std::min<int64_t>(want, room));
    if (!PreemptYoungerThan(id, decision)) return 0;
    --behind;
  }
}

bool Scheduler::PreemptYoungerThan(SequenceId id, Decision& decision) {
  for (auto at = running_.rbegin(); at != running_.rend() && at->first > id; ++at) {
    const auto [victim_id, victim] = *at;
    if (victim->in_flight > 0 || victim->blocks.empty()) continue;
    LetGo(victim_id, *victim);
    victim->running = false;
    running_.erase(victim_id);
    waiting_.emplace(victim_id, victim);
    decision.preempted.push_back(victim_id);
    ++counts_.preemptions;
    return true;
  }
  return false;
}

void Scheduler::LetGo(SequenceId id, Sequence& sequence) {
  pool_.Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.told = 0;
  sequence.remembered = 0;
  sequence.place = {};
  sequence.computed = sequence.planned = sequence.found = 0;
  if (std::exchange(sequence.held, false)) removed_.push_back(id);
}

void Scheduler::Reset() {
  for (BlockId block = 0; block < pool_.size(); ++block) {
    cache_.Forget(block);
    pool_.Forget(block);
  }
  for (auto& [id, sequence] : running_) {
    if (std::exchange(sequence->in_flight, 0) > 0 && sequence->ending) ending_.push_back(id);
    LetGo(id, *sequence);
    sequence->running = false;
    waiting_.emplace(id, sequence);
  }
  running_.clear();
  in_flight_.clear();
  removed_.clear();
  last_step_ = 0;
  overlap_ = OverlapChoice(options_.overlap);  // other machines, other links
}

int Scheduler::Promised() const {
  int promised = 0;
  for (const auto& [id, sequence] : running_)
    promised += std::max(0, BlocksAhead(*sequence) - static_cast<int>(sequence->blocks.size()));
  return promised;
}

// Whoever computed the whole prompt before has delivered its log-probabilities.
bool Scheduler::WantsPromptLogprobs(const Sequence& sequence) const {
  return sequence.request.sampling.prompt_logprobs && sequence.computed_before < sequence.prompt_length;
}

PrefixCache::Match Scheduler::FindPrefix(const Sequence& sequence) const {
  if (!options_.prefix_cache || WantsPromptLogprobs(sequence)) return {};
  return cache_.Find(sequence.request.tenant, sequence.tokens, (sequence.total() - 1) / limits::kBlockTokens);
}

// A running sequence is about to compute the block behind the `known` ones: to wait for it is to compute it once. Not with
// several stages, where the line must not stand while a prompt goes through them piece by piece.
bool Scheduler::ComesSoon(const Sequence& sequence, size_t known) const {
  constexpr size_t kBlock = limits::kBlockTokens;
  const size_t end = (known + 1) * kBlock;
  if (!options_.prefix_cache || options_.steps_at_once > 1 || WantsPromptLogprobs(sequence) ||
      end >= sequence.tokens.size())
    return false;
  const auto same = [&sequence](const Sequence& other, size_t first, size_t last) {
    return std::ranges::equal(std::span(sequence.tokens).subspan(first, last - first),
                              std::span(other.tokens).subspan(first, last - first));
  };
  return std::ranges::any_of(running_, [&](const auto& entry) {
    const Sequence& other = *entry.second;
    return !other.ending && !other.place.lost && other.tokens.size() >= end && other.computed < static_cast<int>(end) &&
           other.request.tenant == sequence.request.tenant && same(other, end - kBlock, end) &&
           same(other, 0, end - kBlock);
  });
}

void Scheduler::Begin(Sequence& sequence, PrefixCache::Match prefix) {
  for (const BlockId block : prefix.blocks) pool_.Hold(block);
  sequence.blocks = std::move(prefix.blocks);
  sequence.remembered = static_cast<int>(sequence.blocks.size());
  sequence.place = prefix.end;
  sequence.computed = sequence.planned = sequence.found = sequence.remembered * limits::kBlockTokens;
  counts_.cached_tokens += static_cast<uint64_t>(sequence.computed);
  if (sequence.computed_before == 0) sequence.cached_prompt = std::min(sequence.computed, sequence.prompt_length);
  sequence.computed_before = std::max(sequence.computed_before, sequence.computed);
}

// Full blocks whose rows are all computed: from now on they can be found.
void Scheduler::Remember(Sequence& sequence) {
  if (!options_.prefix_cache) return;
  constexpr int kBlock = limits::kBlockTokens;
  for (; (sequence.remembered + 1) * kBlock <= sequence.computed && !sequence.place.lost; ++sequence.remembered) {
    const auto tokens = std::span(sequence.tokens).subspan(static_cast<size_t>(sequence.remembered) * kBlock, kBlock);
    const BlockId block = sequence.blocks[static_cast<size_t>(sequence.remembered)];
    if (cache_.Add(sequence.request.tenant, tokens, block, sequence.place)) pool_.Keep(block);
  }
}

void Scheduler::AdmitPass(Decision& decision, int& rows, int most) {
  if (waiting_.empty()) return;
  int promised = Promised();
  // A step that had to pre-empt admits nobody: the blocks it freed belong to those who ran short.
  bool short_of_blocks = !decision.preempted.empty();

  while (!waiting_.empty()) {
    if (static_cast<int>(decision.plan.chunks.size()) == most && options_.steps_at_once > 1) return;
    const auto [id, sequence] = *waiting_.begin();
    const int ahead = BlocksAhead(*sequence);
    PrefixCache::Match prefix;
    if (static_cast<int>(running_.size()) >= options_.max_sequences) {
      decision.obstacle = Obstacle::kSequences;
    } else if (rows == 0) {
      decision.obstacle = Obstacle::kRows;
    } else {
      prefix = FindPrefix(*sequence);
      const auto shared = std::ranges::count_if(prefix.blocks, [&](BlockId block) { return pool_.holders(block) > 0; });
      if (short_of_blocks || pool_.free() - promised < ahead - static_cast<int>(shared))
        decision.obstacle = Obstacle::kBlocks;
      else if (ComesSoon(*sequence, prefix.blocks.size()))
        decision.obstacle = Obstacle::kPrefix;
    }
    if (decision.obstacle != Obstacle::kNone) {
      decision.held_back = id;
      return;
    }
    waiting_.erase(waiting_.begin());
    running_.emplace(id, sequence);
    sequence->running = true;
    Begin(*sequence, std::move(prefix));
    decision.admitted.push_back(id);
    const int count = std::min({sequence->total() - sequence->computed, rows, PieceRows(*sequence)});
    PlanRows(id, *sequence, count, decision);
    promised += ahead - static_cast<int>(sequence->blocks.size());
    rows -= count;
  }
}

// From its own blocks and free ones: a prompt that is ahead of its turn takes nothing from anybody.
void Scheduler::FollowPass(Decision& decision, int rows) {
  if (steps_in_flight() >= options_.steps_at_once || !decision.preempted.empty() || !decision.stalled.empty()) return;
  for (const auto& [id, sequence] : running_) {
    const int left = sequence->total() - sequence->planned;
    if (sequence->in_flight == 0 || left == 0 || sequence->ending) continue;
    const int64_t blocks = static_cast<int64_t>(sequence->blocks.size()) + pool_.free();
    const int64_t room = blocks * limits::kBlockTokens - sequence->planned;
    const int count = static_cast<int>(std::min<int64_t>(std::min({left, rows, PieceRows(*sequence)}), room));
    if (count < 1) continue;
    PlanRows(id, *sequence, count, decision);
    return;
  }
}

void Scheduler::TellBlocks(Sequence& sequence, SequenceChunk& chunk) {
  for (; sequence.told < sequence.blocks.size(); ++sequence.told) {
    const BlockId block = sequence.blocks[sequence.told];
    if (static_cast<int>(sequence.told) >= sequence.remembered)
      cache_.Forget(block);  // it will hold something else now
    chunk.new_blocks.push_back(block);
  }
}

void Scheduler::PlanRows(SequenceId id, Sequence& sequence, int count, Decision& decision) {
  if (!sequence.held) {
    sequence.held = true;
    SequenceStart start{.id = id,
                        .tokens = sequence.tokens,
                        .prompt_length = sequence.prompt_length,
                        .sampling = sequence.request.sampling,
                        .forbidden = {}};
    if (sequence.request.ignore_eos) start.forbidden = options_.end_tokens;
    start.sampling.prompt_logprobs = WantsPromptLogprobs(sequence);
    decision.plan.added.push_back(std::move(start));
    sequence.told_tokens = sequence.total();
  }
  SequenceChunk chunk{.id = id, .first = sequence.planned, .count = count, .new_blocks = {}, .sample = false};
  sequence.planned += count;
  const int need = BlocksFor(sequence.planned) - static_cast<int>(sequence.blocks.size());
  if (need > 0) SHOAL_CHECK(pool_.Take(need, sequence.blocks));
  TellBlocks(sequence, chunk);
  chunk.new_tokens.assign(sequence.tokens.begin() + sequence.told_tokens, sequence.tokens.end());
  sequence.told_tokens = sequence.total();
  chunk.sample = sequence.planned == sequence.total() && sequence.request.max_tokens > 0;
  ++sequence.in_flight;
  decision.plan.chunks.push_back(std::move(chunk));
}

int Scheduler::RowBudget() const {
  if (options_.mixed_rows == 0) return options_.max_step_rows;
  int decoding = 0, running = 0;
  bool any_decodes = false;  // in flight too: the next step of those waits behind this one in every stage
  for (const auto& [id, sequence] : running_) {
    const bool decodes = sequence->total() - sequence->computed == 1;
    any_decodes |= decodes;
    if (sequence->in_flight > 0) continue;
    ++running;
    decoding += decodes;
  }
  if (!any_decodes) return options_.max_step_rows;
  int prompt = options_.mixed_rows;
  if (prompt < 0) {
    constexpr int kUnmeasured = 32, kLeast = 2;  // a prompt always moves
    constexpr double kLongest = 1.8;             // times a step without: 2 is promised, and times vary
    prompt = kUnmeasured;
    if (decode_cost_.known() && mixed_cost_.known()) {
      const double left = kLongest * decode_cost_.Of(decoding) - mixed_cost_.Of(decoding);
      prompt = static_cast<int>(std::clamp(left / mixed_cost_.row(), double{kLeast}, double{limits::kMaxStepRows}));
    }
  }
  return std::clamp(decoding + prompt, std::min(running, options_.max_step_rows), options_.max_step_rows);
}

void Scheduler::DraftPass(Decision& decision) {
  StepPlan& plan = decision.plan;
  if (options_.max_draft == 0 || !decision.preempted.empty() || !decision.stalled.empty()) return;
  if (decision.obstacle == Obstacle::kBlocks) return;
  if (std::ranges::any_of(plan.chunks, [](const auto& chunk) { return !chunk.sample || chunk.count > 1; })) return;
  int rows = options_.max_step_rows - plan.rows();
  int spare = pool_.free() - Promised();
  for (SequenceChunk& chunk : plan.chunks) {
    Sequence& sequence = sequences_.at(chunk.id);
    const int room =
        static_cast<int>(sequence.blocks.size() + static_cast<size_t>(std::max(0, spare))) * limits::kBlockTokens;
    const int most = std::min({options_.max_draft, rows, std::min(room, MostRows(sequence)) - sequence.total()});
    const int length = DraftLength(sequence.chance.value(), decode_cost_, static_cast<int>(plan.chunks.size()), most);
    if (length < 1) {
      if (most > 0) sequence.chance.NotTried();
      continue;
    }
    chunk.draft = LookUp(sequence.tokens, length);
    rows -= static_cast<int>(chunk.draft.size());
    const int need = BlocksFor(chunk.first + chunk.rows()) - static_cast<int>(sequence.blocks.size());
    if (need <= 0) continue;
    SHOAL_CHECK(pool_.Take(need, sequence.blocks));
    spare -= need;
    TellBlocks(sequence, chunk);
  }
}

// The chunk's rows are computed and good up to sequence.computed.
void Scheduler::CountRows(const SequenceChunk& chunk, Sequence& sequence) {
  const int news = std::max(0, sequence.computed - std::max(chunk.first, sequence.computed_before));
  const int prompt_end = std::min(sequence.computed, sequence.prompt_length);
  counts_.prompt_tokens +=
      static_cast<uint64_t>(std::max(0, prompt_end - std::max(chunk.first, sequence.computed_before)));
  counts_.recomputed_rows += static_cast<uint64_t>(sequence.computed - chunk.first - news);
  sequence.computed_before = std::max(sequence.computed_before, sequence.computed);
}

void Scheduler::CountStep(const StepInFlight& step, const StepResult& result) {
  int rows = 0;
  bool decodes = true;
  for (const SequenceChunk& chunk : step.chunks) {
    rows += chunk.rows();
    decodes &= chunk.sample && chunk.count == 1;
  }
  (decodes ? decode_cost_ : mixed_cost_).Observe(rows, result.compute_ns);
  overlap_.Observe(rows, step.overlap, result.compute_ns, result.meeting_ns);
}

Result<Applied> Scheduler::Apply(const StepResult& result) {
  if (in_flight_.empty()) return BadResult(result.step, "no step is in flight");
  std::vector<std::span<const SampledToken>> by_chunk;
  SHOAL_RETURN_IF_ERROR(CheckResult(in_flight_.front(), result, by_chunk));
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  CountStep(step, result);

  Applied applied;
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const SequenceChunk& chunk = step.chunks[i];
    const std::span<const SampledToken> tokens = by_chunk[i];
    Sequence& sequence = sequences_.at(chunk.id);
    --sequence.in_flight;
    sequence.computed += chunk.count;
    CountRows(chunk, sequence);
    if (sequence.ending && sequence.in_flight > 0) continue;  // it ends with the last of its steps
    if (sequence.ending || (chunk.sample && tokens[0].error)) {
      const bool outside = sequence.ending.has_value();
      if (outside) Remember(sequence);
      Retire(chunk.id, outside ? *sequence.ending : FinishReason::kError, outside ? std::nullopt : tokens[0].error,
             applied.finished);
      continue;
    }
    if (!chunk.sample) {
      Remember(sequence);
      if (sequence.computed == sequence.total())  // max_tokens == 0: only the prompt was wanted
        Retire(chunk.id, FinishReason::kLength, std::nullopt, applied.finished);
      continue;
    }
    TakeTokens(chunk, tokens, result, applied);
  }
  return applied;
}

// The first token is there for certain; each further one says that the guess before it was right and its row is good.
void Scheduler::TakeTokens(const SequenceChunk& chunk, std::span<const SampledToken> tokens, const StepResult& result,
                           Applied& applied) {
  Sequence& sequence = sequences_.at(chunk.id);
  const int proposed = static_cast<int>(chunk.draft.size());
  if (proposed > 0) {
    const int right = static_cast<int>(tokens.size()) - 1;
    counts_.proposed_tokens += static_cast<uint64_t>(proposed);
    counts_.accepted_tokens += static_cast<uint64_t>(right);
    sequence.chance.Verified(proposed, right);
  }
  std::optional<FinishReason> reason;
  std::optional<Error> error;
  for (const SampledToken& token : tokens) {
    if (&token != &tokens.front()) ++sequence.computed, ++sequence.planned;
    if (token.error) {
      reason = FinishReason::kError;
      error = token.error;
      break;
    }
    sequence.tokens.push_back(token.token);
    ++counts_.generated_tokens;
    applied.accepted.push_back(static_cast<size_t>(&token - result.tokens.data()));
    reason = EndOf(sequence, token.token);
    if (reason) break;
  }
  sequence.computed_before = std::max(sequence.computed_before, sequence.computed);
  if (!error) Remember(sequence);
  if (reason) Retire(chunk.id, *reason, std::move(error), applied.finished);
}

Status Scheduler::CheckResult(const StepInFlight& step, const StepResult& result,
                              std::vector<std::span<const SampledToken>>& by_chunk) const {
  if (result.step != step.step)
    return BadResult(result.step, "step " + std::to_string(step.step) + " is the oldest in flight");
  by_chunk.assign(step.chunks.size(), {});
  const std::span<const SampledToken> all = result.tokens;
  size_t next = 0;  // tokens usually come in the plan's order
  size_t taken = 0;
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const SequenceChunk& chunk = step.chunks[i];
    if (!chunk.sample) continue;
    const auto is_mine = [&](const SampledToken& token) { return token.id == chunk.id; };
    if (next >= all.size() || !is_mine(all[next]))
      next = static_cast<size_t>(std::ranges::find_if(all, is_mine) - all.begin());
    size_t count = 0;
    while (next + count < all.size() && is_mine(all[next + count])) ++count;
    by_chunk[i] = all.subspan(std::min(next, all.size()), count);
    SHOAL_RETURN_IF_ERROR(CheckTokens(result.step, chunk, by_chunk[i]));
    next += count;
    taken += count;
  }
  if (taken != all.size())
    return BadResult(result.step,
                     std::to_string(all.size()) + " tokens, of which " + std::to_string(taken) + " were asked for");
  return {};
}

// One token, and one more for each guess that was drawn.
Status Scheduler::CheckTokens(StepId step, const SequenceChunk& chunk, std::span<const SampledToken> tokens) const {
  const std::string who = "sequence " + std::to_string(chunk.id);
  if (tokens.empty()) return BadResult(step, "no token for " + who);
  if (tokens.size() > chunk.draft.size() + 1) return BadResult(step, "too many tokens for " + who);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const SampledToken& token = tokens[i];
    const int position = chunk.first + chunk.count + static_cast<int>(i);
    if (token.position != position)
      return BadResult(step, who + " has its token at position " + std::to_string(token.position) + ", not " +
                                 std::to_string(position));
    if (!token.error && (token.token < 0 || token.token >= options_.vocabulary))
      return BadResult(step, "token " + std::to_string(token.token) + " is not in the vocabulary");
    const bool guessed = i < chunk.draft.size() && !token.error && token.token == chunk.draft[i];
    if (const bool last = i + 1 == tokens.size(); guessed == last)
      return BadResult(step, who + " has tokens that do not follow its draft");
  }
  return {};
}

std::optional<FinishReason> Scheduler::EndOf(const Sequence& sequence, TokenId last) const {
  const auto& ends = options_.end_tokens;
  const auto& stops = sequence.request.stop_tokens;
  if (!sequence.request.ignore_eos && std::find(ends.begin(), ends.end(), last) != ends.end())
    return FinishReason::kStop;
  if (std::find(stops.begin(), stops.end(), last) != stops.end()) return FinishReason::kStop;
  if (sequence.generated() >= sequence.request.max_tokens) return FinishReason::kLength;
  if (sequence.total() >= options_.sequence_limit()) return FinishReason::kLength;
  return std::nullopt;
}

void Scheduler::Retire(SequenceId id, FinishReason reason, std::optional<Error> error, std::vector<Finished>& out) {
  const auto found = sequences_.find(id);
  Sequence& sequence = found->second;
  LetGo(id, sequence);
  (sequence.running ? running_ : waiting_).erase(id);
  sequences_.erase(found);
  out.push_back({id, reason, std::move(error)});
}

int Scheduler::MostRows(const Sequence& sequence) const {
  const int64_t most = static_cast<int64_t>(sequence.prompt_length) + sequence.request.max_tokens;
  const int tokens = static_cast<int>(std::min<int64_t>(most, options_.sequence_limit()));
  return sequence.request.max_tokens == 0 ? tokens : tokens - 1;  // the last token drawn is never computed
}

int Scheduler::BlocksAhead(const Sequence& sequence) const {
  return BlocksFor(std::min(sequence.total() + 1, MostRows(sequence)));
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = counts_;
  stats.waiting = static_cast<int>(waiting_.size());
  stats.running = static_cast<int>(running_.size());
  stats.blocks = pool_.size();
  stats.blocks_free = pool_.free();
  stats.blocks_kept = pool_.kept();
  return stats;
}

std::vector<SequenceId> Scheduler::waiting() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, sequence] : waiting_) ids.push_back(id);
  return ids;
}

std::vector<SequenceId> Scheduler::running() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, sequence] : running_) ids.push_back(id);
  return ids;
}

const std::vector<TokenId>* Scheduler::tokens(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : &found->second.tokens;
}

int Scheduler::cached_prompt(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? 0 : found->second.cached_prompt;
}

std::optional<std::string> Scheduler::Check() const {
  if (auto wrong = pool_.Check()) return wrong;
  if (waiting_.size() + running_.size() != sequences_.size()) return "a sequence is in no line or in both";
  if (static_cast<int>(running_.size()) > options_.max_sequences) return "too many sequences run";
  std::vector<int> holders(static_cast<size_t>(pool_.size()), 0);
  for (const auto& [id, sequence] : sequences_) {
    const Line& line = sequence.running ? running_ : waiting_;
    const auto found = line.find(id);
    const char* wrong = nullptr;
    if (found == line.end() || found->second != &sequence) wrong = "is not in its line";
    if (!sequence.running &&
        (!sequence.blocks.empty() || sequence.planned != 0 || sequence.in_flight > 0 || sequence.held))
      wrong = "waits and holds something";
    if (sequence.planned > sequence.total()) wrong = "computed more than it has";
    if (sequence.computed > sequence.planned || (sequence.in_flight == 0) != (sequence.computed == sequence.planned))
      wrong = "has rows in flight without a step";
    if (BlocksFor(sequence.planned) > static_cast<int>(sequence.blocks.size())) wrong = "has too few blocks";
    if (sequence.total() > options_.sequence_limit()) wrong = "is too long";
    if (wrong != nullptr) return "sequence " + std::to_string(id) + " " + wrong;
    for (const BlockId block : sequence.blocks) ++holders[static_cast<size_t>(block)];
  }
  for (BlockId block = 0; block < pool_.size(); ++block)
    if (holders[static_cast<size_t>(block)] != pool_.holders(block))
      return "block " + std::to_string(block) + " is held by " + std::to_string(holders[static_cast<size_t>(block)]) +
             " sequences, the pool says " + std::to_string(pool_.holders(block));
  int kept = 0;
  for (BlockId block = 0; block < pool_.size(); ++block) kept += cache_.Knows(block) && pool_.holders(block) == 0;
  if (kept != pool_.kept()) return "kept blocks are not those that the cache knows and nobody holds";
  return std::nullopt;
}

std::string ToString(const Decision& decision) {
  std::string text = ToString(decision.plan);
  const auto list = [&](const char* name, const std::vector<SequenceId>& ids) {
    if (ids.empty()) return;
    text += std::string(" ") + name;
    for (const SequenceId id : ids) text += " " + std::to_string(id);
  };
  list("admitted", decision.admitted);
  list("preempted", decision.preempted);
  list("stalled", decision.stalled);
  if (!decision.finished.empty()) text += " finished";
  for (const auto& finished : decision.finished) text += " " + std::to_string(finished.id);
  static constexpr const char* kObstacles[] = {"", "sequences", "rows", "blocks", "prefix"};
  if (decision.held_back != 0)
    text +=
        " held_back " + std::to_string(decision.held_back) + " by " + kObstacles[static_cast<int>(decision.obstacle)];
  return text;
}

}  // namespace shoal
