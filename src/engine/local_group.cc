#include "engine/local_group.h"

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

class LocalGroup : public Group {
 public:
  LocalGroup(std::vector<std::unique_ptr<Collective>> collectives, std::vector<std::unique_ptr<Rank>> ranks,
             GroupInfo info)
      : collectives_(std::move(collectives)), ranks_(std::move(ranks)), info_(std::move(info)) {
    for (size_t r = 1; r < ranks_.size(); ++r) {
      orders_.push_back(std::make_unique<BoundedQueue<StepPlan>>(2));
      threads_.emplace_back([this, r] { Follow(r); });
    }
  }

  ~LocalGroup() override {
    for (auto& collective : collectives_) collective->Close();
    for (auto& order : orders_) order->Close();
  }

  Status Start(const StepPlan& plan) override {
    for (auto& order : orders_)
      if (!order->TryPush(StepPlan(plan)))
        return Fail(Code::kUnavailable, reasons::kGroupClosed, "a rank of the group has stopped");
    plan_ = plan;
    return {};
  }

  Result<StepResult> Wait(Deadline deadline) override {
    SHOAL_CHECK(plan_.has_value());
    collectives_[0]->SetDeadline(deadline);
    auto result = ranks_[0]->Execute(*plan_);
    plan_.reset();
    return result;
  }

  const GroupInfo& info() const override { return info_; }

 private:
  // A rank after the first: carries out its orders until the queue is closed or a step fails.
  void Follow(size_t r) {
    while (auto plan = orders_[r - 1]->PopBefore({Time::max()})) {
      collectives_[r]->SetDeadline(Deadline::After(limits::kStepTimeout));
      if (!ranks_[r]->Execute(*plan)) {
        collectives_[r]->Close();  // the others see it in their next meeting
        orders_[r - 1]->Close();
        return;
      }
    }
  }

  std::vector<std::unique_ptr<Collective>> collectives_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  GroupInfo info_;
  std::optional<StepPlan> plan_;
  std::vector<std::unique_ptr<BoundedQueue<StepPlan>>> orders_;
  std::vector<std::jthread> threads_;  // last: joined before what they use is gone
};

}  // namespace

Result<std::unique_ptr<Group>> LoadLocalGroup(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                              int threads) {
  auto collectives = MakeLocalGroup(plan.size());
  std::vector<std::unique_ptr<Rank>> ranks;
  GroupInfo info{plan, {}, std::string(kernels::TargetName())};
  for (auto& collective : collectives) {
    SHOAL_ASSIGN(auto rank, Rank::Load(spec, source, plan, *collective, {.threads = threads}));
    info.ranks.push_back({"local", rank->executor().weight_bytes(), rank->executor().kv_bytes(), threads});
    ranks.push_back(std::move(rank));
  }
  return std::unique_ptr<Group>(new LocalGroup(std::move(collectives), std::move(ranks), std::move(info)));
}

}  // namespace shoal
