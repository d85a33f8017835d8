#include "tests/scenario/world.h"

#include <algorithm>
#include <utility>

namespace shoal::scenario {
namespace {

sim::PretendOptions WithForce(sim::PretendOptions ranks, std::function<std::optional<TokenId>(SequenceId, int)> force) {
  ranks.force = std::move(force);
  return ranks;
}

bool Has(const std::vector<TokenId>& list, TokenId token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

}  // namespace

World::World(SchedulerOptions scheduler, sim::PretendOptions ranks)
    : ranks_(std::move(ranks)), scheduler_(std::move(scheduler)), group_(NewGroup()) {}

std::unique_ptr<sim::PretendGroup> World::NewGroup() {
  return std::make_unique<sim::PretendGroup>(
      WithForce(ranks_, [this](SequenceId id, int position) -> std::optional<TokenId> {
        const int index = position - static_cast<int>(records_.at(id).request.prompt.size()) + 1;
        const auto found = forced_.find({id, index});
        return found == forced_.end() ? std::nullopt : std::optional(found->second);
      }));
}

void World::Reset() {
  scheduler_.Reset();
  group_ = NewGroup();
  CheckAlways();
}

void World::Note(std::string problem) {
  if (problem_.empty()) problem_ = std::move(problem);
}

Result<SequenceId> World::Add(Request request) {
  auto id = scheduler_.Add(request);
  if (id) records_[*id].request = std::move(request);
  CheckAlways();
  return id;
}

bool World::Schedule() {
  const bool alone = scheduler_.steps_in_flight() == 0;
  decision_ = scheduler_.Schedule();
  CheckAlways();
  TakeFinished(decision_.finished);
  for (const SequenceId id : decision_.admitted) {
    if (id <= last_admitted_) continue;  // admitted before, pre-empted since
    if (id != last_admitted_ + 1 && std::any_of(records_.begin(), records_.end(), [&](const auto& entry) {
          return entry.first > last_admitted_ && entry.first < id && !entry.second.end;
        }))
      Note("sequence " + std::to_string(id) + " was admitted before an older one");
    last_admitted_ = id;
  }
  CheckPasses(alone);
  if (decision_.plan.chunks.empty()) return false;
  if (auto started = group_->Start(decision_.plan); !started) Note(ToString(started.error()));
  return true;
}

// What one decision promises: the budget, and that the oldest sequence always moves.
void World::CheckPasses(bool alone) {
  const auto& plan = decision_.plan;
  if (plan.rows() > scheduler_.options().max_step_rows)
    Note("the step has more rows than its budget: " + ToString(plan));
  if (!alone) return;
  const auto running = scheduler_.running();
  if (running.empty() && !scheduler_.waiting().empty()) Note("sequences wait and none runs: " + ToString(decision_));
  // Steps in flight protect the young ones among them, so that an older one may have been pre-empted, and follow now.
  if (!running.empty() && std::ranges::none_of(plan.chunks, [&](const auto& chunk) { return chunk.id == running[0]; }))
    Note("the oldest sequence did not move: " + ToString(decision_));
  if (scheduler_.options().steps_at_once == 1 && plan.chunks.size() + decision_.stalled.size() != running.size())
    Note("a running sequence neither moved nor stalled: " + ToString(decision_));
}

void World::Apply() {
  auto result = group_->Wait(Deadline::After(std::chrono::seconds(60)));
  if (!result) return Note(ToString(result.error()));
  if (reverse_) {  // the tokens of one sequence stay together, in order
    std::reverse(result->tokens.begin(), result->tokens.end());
    std::stable_sort(result->tokens.begin(), result->tokens.end(), [](const SampledToken& a, const SampledToken& b) {
      return a.id != b.id ? a.id > b.id : a.position < b.position;
    });
  }
  const auto applied = scheduler_.Apply(*result);
  if (!applied) return Note(ToString(applied.error()));
  for (const size_t index : applied->accepted) {
    const SampledToken& token = result->tokens[index];
    records_.at(token.id).generated.push_back(token.token);
  }
  TakeFinished(applied->finished);
  CheckAlways();
}

void World::Run(int most_steps) {
  for (int step = 0; step < most_steps && problem_.empty(); ++step) {
    while (scheduler_.steps_in_flight() < scheduler_.options().steps_at_once && Schedule()) {
    }
    if (scheduler_.steps_in_flight() == 0) break;
    Apply();
  }
  if (!scheduler_.empty()) Note("not finished after " + std::to_string(most_steps) + " steps");
}

void World::CheckAlways() {
  if (auto wrong = scheduler_.Check()) Note(*wrong);
  const auto stats = scheduler_.stats();
  if (scheduler_.empty() && stats.blocks_free != stats.blocks) Note("nothing runs, and blocks are missing");
}

void World::TakeFinished(const std::vector<Finished>& finished) {
  for (const Finished& end : finished) {
    Record& record = records_.at(end.id);
    if (record.end) Note("sequence " + std::to_string(end.id) + " finished twice");
    record.end = end;
    finish_order_.push_back(end.id);
    CheckAgainstAlone(end.id);
  }
}

// The same request with the machine to itself: no blocks, no steps, only the model and the rules of ending.
void World::CheckAgainstAlone(SequenceId id) {
  const Record& record = records_.at(id);
  const Request& request = record.request;
  const SchedulerOptions& options = scheduler_.options();
  std::vector<TokenId> tokens = request.prompt;
  std::vector<TokenId> expected;
  std::optional<FinishReason> reason;
  if (request.max_tokens == 0) reason = FinishReason::kLength;
  while (!reason) {
    auto draw = DrawPretend(ranks_, tokens, request.ignore_eos ? options.end_tokens : std::vector<TokenId>{});
    if (draw.error) {
      reason = FinishReason::kError;
      break;
    }
    const auto forced = forced_.find({id, static_cast<int>(expected.size()) + 1});
    if (forced != forced_.end()) draw.token = forced->second;
    tokens.push_back(draw.token);
    expected.push_back(draw.token);
    if ((!request.ignore_eos && Has(options.end_tokens, draw.token)) || Has(request.stop_tokens, draw.token))
      reason = FinishReason::kStop;
    else if (static_cast<int>(expected.size()) == request.max_tokens ||
             static_cast<int>(tokens.size()) == options.sequence_limit())
      reason = FinishReason::kLength;
  }
  const auto& got = record.generated;
  const bool own_end = record.end->reason == *reason && got == expected;
  // Ended from outside: what came until then is the beginning of what would have come.
  const bool cut_short =
      (record.end->reason == FinishReason::kCancelled || record.end->reason == FinishReason::kStop) &&
      got.size() <= expected.size() && std::equal(got.begin(), got.end(), expected.begin());
  if (!own_end && !cut_short)
    Note("sequence " + std::to_string(id) + " got " + std::to_string(got.size()) +
         " tokens that it does not get alone (" + std::to_string(expected.size()) + ")");
}

}  // namespace shoal::scenario
