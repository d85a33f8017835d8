#include "engine/local_group.h"

#include <deque>
#include <optional>
#include <thread>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "comm/local.h"
#include "compute/kernels/linear.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "engine/rank.h"

namespace shoal {
namespace {

// A rank and the ends of the meetings that it comes to.
struct Seat {
  std::unique_ptr<Collective> stage;
  std::unique_ptr<Collective> group;  // null where there is one stage
  std::unique_ptr<Rank> rank;

  Result<StepResult> Execute(const StepPlan& plan, Deadline deadline) {
    stage->SetDeadline(deadline);
    if (group) group->SetDeadline(deadline);
    return rank->Execute(plan);
  }
  void Close() {
    stage->Close();
    if (group) group->Close();
  }
};

// The embedded default: no thread but the caller's and the rank's own compute threads.
class LoneGroup : public Group {
 public:
  LoneGroup(Seat seat, GroupInfo info) : seat_(std::move(seat)), info_(std::move(info)) {}

  Status Start(const StepPlan& plan) override {
    SHOAL_CHECK(!plan_.has_value());
    plan_ = plan;
    return {};
  }

  Result<StepResult> Wait(Deadline deadline) override {
    SHOAL_CHECK(plan_.has_value());
    auto result = seat_.Execute(*std::exchange(plan_, std::nullopt), deadline);
    if (result) busy_ns_ += result->compute_ns - result->meeting_ns;
    return result;
  }

  std::span<const int64_t> busy_ns() const override { return {&busy_ns_, 1}; }
  const GroupInfo& info() const override { return info_; }

 private:
  Seat seat_;
  const GroupInfo info_;
  std::optional<StepPlan> plan_;
  int64_t busy_ns_ = 0;
};

// Several ranks, a thread each.
class LocalGroup : public Group {
 public:
  LocalGroup(std::vector<Seat> seats, GroupInfo info)
      : seats_(std::move(seats)), info_(std::move(info)), drawing_(static_cast<size_t>(DrawingRank(info_.plan))) {
    const size_t depth = StagesOf(info_.plan).size();
    // A rank with nothing to wait for may be ahead of its neighbours by as many steps as are under way.
    results_ = std::make_unique<BoundedQueue<Result<StepResult>>>(depth + 1);
    for (size_t r = 0; r < seats_.size(); ++r)
      orders_.push_back(std::make_unique<BoundedQueue<StepPlan>>(2 * depth + 2));
    for (size_t r = 0; r < seats_.size(); ++r) threads_.emplace_back([this, r] { Follow(r); });
  }

  ~LocalGroup() override {
    for (auto& seat : seats_) seat.Close();
    for (auto& order : orders_) order->Close();
  }

  Status Start(const StepPlan& plan) override {
    for (auto& order : orders_)
      if (!order->TryPush(StepPlan(plan)))
        return Fail(Code::kUnavailable, reasons::kGroupClosed, "a rank of the group has stopped");
    return {};
  }

  Result<StepResult> Wait(Deadline deadline) override {
    auto result = results_->PopBefore(deadline);
    if (result) return *std::move(result);
    if (deadline.passed())
      return Fail(Code::kDeadlineExceeded, reasons::kPeerTimeout, "a step took longer than its deadline");
    return Fail(Code::kUnavailable, reasons::kGroupClosed, "the group of ranks is closed");
  }

  const GroupInfo& info() const override { return info_; }

 private:
  // Carries out a rank's orders until the queue is closed or a step fails.
  void Follow(size_t r) {
    bool works = true;
    while (works) {
      auto plan = orders_[r]->PopBefore({Time::max()});
      if (!plan) return;
      auto result = seats_[r].Execute(*plan, Deadline::After(limits::kStepTimeout));
      works = result.has_value();
      if (!works) {
        seats_[r].Close();  // the others see it in their next meeting
        orders_[r]->Close();
      }
      if (r == drawing_ && !results_->TryPush(std::move(result))) works = false;
    }
    if (r == drawing_) results_->Close();
  }

  std::vector<Seat> seats_;
  const GroupInfo info_;
  const size_t drawing_;
  std::vector<std::unique_ptr<BoundedQueue<StepPlan>>> orders_;
  std::unique_ptr<BoundedQueue<Result<StepResult>>> results_;  // of the rank that draws
  std::vector<std::jthread> threads_;                          // last: joined before what they use is gone
};

}  // namespace

Result<std::unique_ptr<Group>> LoadLocalGroup(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                              int threads) {
  SHOAL_RETURN_IF_ERROR(CheckShardPlan(plan, spec.n_layers));
  const std::vector<Stage> stages = StagesOf(plan);
  std::vector<Seat> seats;
  for (const Stage& stage : stages)
    for (auto& collective : MakeLocalGroup(stage.ranks)) seats.push_back({std::move(collective), nullptr, nullptr});
  if (stages.size() > 1) {
    auto group = MakeLocalGroup(plan.size());
    for (size_t r = 0; r < seats.size(); ++r) seats[r].group = std::move(group[r]);
  }
  GroupInfo info{plan, {}, std::string(kernels::TargetName())};
  for (size_t r = 0; r < seats.size(); ++r) {
    SHOAL_ASSIGN(seats[r].rank, Rank::Load(spec, source, plan, static_cast<int>(r),
                                           {*seats[r].stage, seats[r].group.get()}, {.threads = threads}));
    const Executor& executor = seats[r].rank->executor();
    info.ranks.push_back({"local", executor.weight_bytes(), executor.kv_bytes(), threads});
  }
  if (seats.size() == 1) return std::make_unique<LoneGroup>(std::move(seats[0]), std::move(info));
  return std::make_unique<LocalGroup>(std::move(seats), std::move(info));
}

}  // namespace shoal
