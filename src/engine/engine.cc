#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <iterator>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "engine/reply.h"
#include "sched/scheduler.h"

namespace shoal {
namespace {

constexpr int kMostGuesses = 8;  // more would seldom all come true

// How often an idle engine asks whether the group is still whole.
constexpr Nanos kCheckEvery = std::chrono::milliseconds(200);

SchedulerOptions OptionsFor(const ModelSpec& spec, const Tokenizer& tokenizer, const GroupInfo& group,
                            EngineOptions options) {
  const auto ends = tokenizer.end_tokens();
  const std::vector<Stage> stages = StagesOf(group.plan);
  const bool meets = std::ranges::any_of(stages, [](const Stage& stage) { return stage.ranks > 1; });
  return {.max_step_rows = options.max_step_rows,
          .max_sequences = options.max_sequences,
          .kv_blocks = group.plan.kv_blocks,
          .context = spec.context_length,
          .vocabulary = spec.n_vocab,
          .end_tokens = {ends.begin(), ends.end()},
          .prefix_cache = options.prefix_cache,
          .max_draft = options.speculate ? kMostGuesses : 0,
          .steps_at_once = static_cast<int>(stages.size()),
          .mixed_rows = options.mixed_rows,
          .overlap = meets ? options.overlap : Overlap::kOff};
}

// One thread owns the scheduler and the replies. A turn of its loop:
//
//     take messages ─▶ Schedule ─▶ group: Start ─▶ deliver the step before ─▶ group: Wait ─▶ Apply
//                                      └───────── ranks compute ───────────────────┘
//
// With several stages, so many steps are started before the oldest is waited for. A lone rank has no thread of its own: it
// computes inside Wait, and delivering comes before (a thousandth of a step of a model of 1 B parameters).
// What a step drew becomes text while the ranks compute the next one: the next plan needs the tokens only. So
// a stop string is found one step late; Scheduler::Finish drops the token that is then on its way.
class ServingEngine : public Engine {
 public:
  ServingEngine(ModelSpec spec, std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Group> group,
                EngineOptions options)
      : spec_(std::move(spec)),
        tokenizer_(std::move(tokenizer)),
        group_(std::move(group)),
        scheduler_(OptionsFor(spec_, *tokenizer_, group_->info(), options)) {
    Publish();
    thread_ = std::thread([this] { Run(); });
  }

  ~ServingEngine() override {
    SHOAL_CHECK(std::this_thread::get_id() != thread_.get_id());  // not from a sink
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Result<RequestHandle> Submit(Request request, Sink sink) override {
    SHOAL_RETURN_IF_ERROR(CheckRequest(request, scheduler_.options()));  // constant; no lock
    RequestHandle handle = 0;
    {
      std::lock_guard lock(mutex_);
      if (failure_)
        return Fail(Code::kUnavailable, failure_->reason, "the workers that hold the model are lost",
                    ToString(*failure_));
      if (stopping_ || draining_)
        return Fail(Code::kUnavailable, reasons::kShuttingDown,
                    "the server is shutting down and takes no new requests");
      if (queued_ >= limits::kMaxQueuedRequests)
        return Fail(Code::kResourceExhausted, reasons::kQueueFull,
                    std::to_string(queued_) + " requests wait already; try again later");
      handle = ++last_handle_;
      ++queued_;
      live_.insert(handle);
      inbox_.push_back({handle, std::move(request), std::move(sink)});
    }
    wake_.notify_one();
    return handle;
  }

  void Cancel(RequestHandle handle) override {
    {
      std::lock_guard lock(mutex_);
      if (!live_.contains(handle)) return;  // finished, or never was: nothing to keep
      cancels_.insert(handle);
    }
    wake_.notify_one();
  }

  bool Drain(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    draining_ = true;
    return done_.wait_until(lock, deadline.at, [&] { return live_.empty(); });
  }

  EngineStats Stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.waiting += static_cast<int>(inbox_.size());
    return stats;
  }

  std::optional<Error> failure() const override {
    std::lock_guard lock(mutex_);
    return failure_;
  }

  const ModelSpec& spec() const override { return spec_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const GroupInfo& group() const override { return group_->info(); }

 private:
  struct Submitted {
    RequestHandle handle = 0;
    Request request;
    Sink sink;
  };
  // A step that was applied and not yet delivered.
  struct Undelivered {
    StepResult result;
    Applied applied;
  };
  struct Outgoing {
    RequestHandle handle = 0;
    Reply* reply = nullptr;
    Delta delta;
  };

  void Run();
  bool TakeMessages();
  void TakeTurn();
  Status StartSteps();
  Status Compute();
  void Deliver();
  void DeliverStep(Undelivered& step);
  void End(SequenceId id, FinishReason reason, std::optional<Error> error);
  void LeaveLine(Reply& reply);
  void Publish();
  void Send();
  void Lose(Error error);

  const ModelSpec spec_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::unique_ptr<Group> group_;

  // The engine thread's own.
  Scheduler scheduler_;  // its options() never change and may be read by all
  std::unordered_map<SequenceId, Reply> replies_;
  std::optional<Undelivered> undelivered_;
  std::vector<Finished> ended_outside_;  // of the last Schedules, not yet delivered
  std::vector<Outgoing> outgoing_;
  uint64_t finished_[4] = {};
  size_t left_line_ = 0;  // since the last Publish
  bool lost_ = false;

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // the engine thread sleeps here when there is nothing to do
  std::condition_variable done_;  // Drain waits here
  std::deque<Submitted> inbox_;
  std::unordered_set<RequestHandle> cancels_;
  std::unordered_set<RequestHandle> live_;  // accepted, last Delta not yet given
  size_t queued_ = 0;                       // accepted, never admitted to a step
  RequestHandle last_handle_ = 0;
  bool stopping_ = false;
  bool draining_ = false;
  EngineStats stats_;
  std::optional<Error> failure_;

  std::thread thread_;
};

void ServingEngine::Run() {
  while (TakeMessages()) TakeTurn();
}

// False: the engine stops and owes nobody anything.
bool ServingEngine::TakeMessages() {
  std::deque<Submitted> submitted;
  std::unordered_set<RequestHandle> cancels;
  bool stopping = false;
  {
    std::unique_lock lock(mutex_);
    const bool idle = lost_ || (scheduler_.empty() && !undelivered_);
    const auto called = [&] { return stopping_ || !inbox_.empty() || !cancels_.empty(); };
    while (idle && !wake_.wait_for(lock, kCheckEvery, called)) {
      if (lost_) continue;
      lock.unlock();
      if (auto whole = group_->Check(); !whole) Lose(std::move(whole).error());
      lock.lock();
    }
    stopping = stopping_;
    if (idle && stopping && inbox_.empty()) return false;
    submitted.swap(inbox_);
    cancels.swap(cancels_);
    stats_.waiting += static_cast<int>(submitted.size());
  }
  for (auto& [handle, request, sink] : submitted) {
    replies_.try_emplace(handle, request, *tokenizer_, std::move(sink));
    // Both count accepted requests from 1, so that a handle is the sequence's id; Submit has checked the
    // request.
    const auto id = scheduler_.Add(std::move(request));
    SHOAL_CHECK(id && *id == handle);
  }
  for (const RequestHandle handle : cancels) scheduler_.Cancel(handle);
  if (stopping)
    for (const auto& [id, reply] : replies_) scheduler_.Cancel(id);
  return true;
}

void ServingEngine::TakeTurn() {
  if (lost_) return;
  Status started = StartSteps();
  Deliver();
  if (!started) return Lose(std::move(started).error());
  if (scheduler_.steps_in_flight() == 0) return;
  if (auto computed = Compute(); !computed) Lose(std::move(computed).error());
}

Status ServingEngine::StartSteps() {
  while (scheduler_.steps_in_flight() < scheduler_.options().steps_at_once) {
    Decision decision = scheduler_.Schedule();
    for (const SequenceId id : decision.admitted) {
      Reply& reply = replies_.at(id);
      if (!reply.admitted) reply.TakeCached(scheduler_.cached_prompt(id));
      LeaveLine(reply);
    }
    std::ranges::move(decision.finished, std::back_inserter(ended_outside_));
    if (decision.plan.chunks.empty()) return {};
    SHOAL_RETURN_IF_ERROR(group_->Start(decision.plan));
  }
  return {};
}

Status ServingEngine::Compute() {
  SHOAL_ASSIGN(StepResult result, group_->Wait(Deadline::After(limits::kStepTimeout)));
  SHOAL_ASSIGN(Applied applied, scheduler_.Apply(result));
  undelivered_.emplace(std::move(result), std::move(applied));
  return {};
}

void ServingEngine::Deliver() {
  if (undelivered_) DeliverStep(*undelivered_);
  undelivered_.reset();
  for (Finished& finished : ended_outside_) End(finished.id, finished.reason, std::move(finished.error));
  ended_outside_.clear();
  Publish();
  Send();
}

void ServingEngine::DeliverStep(Undelivered& step) {
  std::unordered_map<SequenceId, Finished*> ends;
  for (Finished& finished : step.applied.finished) ends[finished.id] = &finished;
  for (PromptLogprob& logprob : step.result.prompt)
    if (const auto found = replies_.find(logprob.id); found != replies_.end())
      found->second.TakePromptLogprob(std::move(logprob));

  const auto& accepted = step.applied.accepted;
  for (size_t i = 0; i < accepted.size(); ++i) {
    SampledToken& token = step.result.tokens[accepted[i]];
    const SequenceId id = token.id;
    const bool last = i + 1 == accepted.size() || step.result.tokens[accepted[i + 1]].id != id;  // of this sequence
    const auto found = replies_.find(id);
    // A stop string was found while this token was drawn, or just before it.
    if (found == replies_.end() || found->second.ended) continue;
    Reply& reply = found->second;
    const auto end = ends.find(id);
    const bool ends_here = last && end != ends.end() && end->second->reason == FinishReason::kStop;
    if (reply.TakeToken(std::move(token), ends_here)) {
      scheduler_.Finish(id, FinishReason::kStop);
      End(id, FinishReason::kStop, std::nullopt);
    } else if (last && end == ends.end()) {
      outgoing_.push_back({id, &reply, reply.News()});
    }
  }
  for (Finished& finished : step.applied.finished) End(finished.id, finished.reason, std::move(finished.error));
}

// A sequence can end twice: by a stop string in its text, and by what the scheduler saw of its tokens. The
// first one counts.
void ServingEngine::End(SequenceId id, FinishReason reason, std::optional<Error> error) {
  const auto found = replies_.find(id);
  if (found == replies_.end() || found->second.ended) return;
  Reply& reply = found->second;
  LeaveLine(reply);
  reply.ended = true;
  outgoing_.push_back({id, &reply, reply.LastNews(reason, std::move(error))});
  ++finished_[static_cast<size_t>(*outgoing_.back().delta.finish)];
}

void ServingEngine::LeaveLine(Reply& reply) {
  if (!std::exchange(reply.admitted, true)) ++left_line_;
}

void ServingEngine::Publish() {
  const SchedulerStats counts = scheduler_.stats();
  EngineStats stats;
  stats.waiting = counts.waiting;
  stats.running = counts.running;
  stats.kv_blocks = counts.blocks;
  stats.kv_blocks_free = counts.blocks_free;
  stats.kv_blocks_cached = counts.blocks_kept;
  stats.cached_tokens = counts.cached_tokens;
  stats.prompt_tokens = counts.prompt_tokens;
  stats.generated_tokens = counts.generated_tokens;
  stats.proposed_tokens = counts.proposed_tokens;
  stats.accepted_tokens = counts.accepted_tokens;
  stats.preemptions = counts.preemptions;
  stats.steps = counts.steps;
  stats.steps_overlapped = counts.steps_overlapped;
  std::copy(std::begin(finished_), std::end(finished_), std::begin(stats.finished));
  std::ranges::copy(group_->busy_ns(), stats.rank_busy_ns.begin());
  std::lock_guard lock(mutex_);
  stats_ = stats;
  queued_ -= std::exchange(left_line_, 0);
}

// Sinks are called without the lock: they may submit and cancel.
void ServingEngine::Send() {
  std::vector<RequestHandle> ended;
  for (auto& [handle, reply, delta] : outgoing_) {
    const bool last = delta.finish.has_value();
    reply->sink()(std::move(delta));
    if (!last) continue;
    ended.push_back(handle);
    replies_.erase(handle);
  }
  outgoing_.clear();
  if (ended.empty()) return;
  std::lock_guard lock(mutex_);
  for (const RequestHandle handle : ended) {
    live_.erase(handle);
    cancels_.erase(handle);
  }
  if (live_.empty()) done_.notify_all();
}

// The group is gone, and with it every sequence's cache. Each unfinished request is told so; from now on
// Submit refuses.
void ServingEngine::Lose(Error error) {
  Log().error("the group is lost: {}", ToString(error));
  lost_ = true;
  std::deque<Submitted> submitted;
  {
    std::lock_guard lock(mutex_);
    failure_ = error;
    submitted.swap(inbox_);
  }
  for (auto& [handle, request, sink] : submitted) replies_.try_emplace(handle, request, *tokenizer_, std::move(sink));
  for (const auto& [id, reply] : replies_) End(id, FinishReason::kError, error);
  Publish();
  Send();
}

}  // namespace

std::unique_ptr<Engine> Engine::Start(ModelSpec spec, std::shared_ptr<const Tokenizer> tokenizer,
                                      std::unique_ptr<Group> group, EngineOptions options) {
  return std::make_unique<ServingEngine>(std::move(spec), std::move(tokenizer), std::move(group), options);
}

}  // namespace shoal
