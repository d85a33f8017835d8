#include "engine/remote_group.h"

#include <poll.h>

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "core/limits.h"
#include "core/reasons.h"
#include "engine/sent_error.h"
#include "engine/shard_server.h"
#include "net/codec.h"
#include "net/handshake.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

// How long Wait polls before it sleeps: a small model's step takes about this long.
constexpr Nanos kSpin = std::chrono::microseconds(50);
constexpr std::chrono::seconds kSendTimeout{10};
// An idle group is asked for a sign of life this often; a process that was stopped or a machine that was unplugged closes
// no link.
constexpr std::chrono::seconds kPingEvery{5};
constexpr std::chrono::seconds kPongTimeout{30};

class RemoteGroup : public Group {
 public:
  RemoteGroup(std::vector<Member> members, Epoch epoch, GroupInfo info)
      : members_(std::move(members)),
        epoch_(epoch),
        info_(std::move(info)),
        drawing_(static_cast<size_t>(DrawingRank(info_.plan))),
        polls_(members_.size()),
        pongs_(members_.size()),
        answered_(members_.size()),
        busy_ns_(members_.size()) {
    for (size_t r = 0; r < members_.size(); ++r) polls_[r] = {members_[r].link.fd(), POLLIN, 0};
  }

  ~RemoteGroup() override {
    wire::Message message;
    message.set_epoch(epoch_);
    message.mutable_goodbye()->set_why("the head ends");
    for (auto& member : members_)
      if (!closed_ || !member.link.closed()) (void)member.link.Send(message, Deadline::After(std::chrono::seconds(1)));
    // The last step's results of the other ranks may still be on their way: a worker must not find its head gone before it
    // has read the goodbye.
    const Deadline patience = Deadline::After(std::chrono::seconds(1));
    for (auto& member : members_)
      while (!member.link.closed() && !patience.passed() && member.link.Receive(patience)) {
      }
  }

  Status Start(const StepPlan& plan) override {
    if (closed_) return Closed();
    wire::Message message;
    message.set_epoch(epoch_);
    EncodeStep(plan, message.mutable_step());
    under_way_.push_back(plan.step);
    return SendAll(message);
  }

  Result<StepResult> Wait(Deadline deadline) override {
    if (closed_) return std::unexpected(Closed().error());
    const Time begin = Now();
    for (;;) {
      SHOAL_RETURN_IF_ERROR(TakeAll());
      if (!results_.empty()) {
        StepResult result = std::move(results_.front());
        results_.pop_front();
        return result;
      }
      const bool spinning = Now() - begin < kSpin;
      poll(polls_.data(), polls_.size(), spinning ? 0 : deadline.poll_ms());
      if (deadline.passed())  // also where somebody keeps talking
        return std::unexpected(Lose(members_[Slowest()], MakeError(Code::kDeadlineExceeded, reasons::kPeerTimeout,
                                                                   "a step took longer than its deadline"))
                                   .error());
    }
  }

  Status Check() override {
    if (closed_) return Closed();
    poll(polls_.data(), polls_.size(), 0);
    SHOAL_RETURN_IF_ERROR(TakeAll());
    const Time now = Now();
    for (size_t r = 0; r < members_.size(); ++r)
      if (pongs_[r] != pings_ && now - pinged_ > kPongTimeout)
        return Lose(members_[r],
                    MakeError(Code::kDeadlineExceeded, reasons::kPeerTimeout, "it gave no sign of life in time"));
    const bool answered = std::ranges::all_of(pongs_, [&](uint64_t pong) { return pong == pings_; });
    if (!answered || now - pinged_ < kPingEvery) return {};
    wire::Message message;
    message.set_epoch(epoch_);
    message.mutable_ping()->set_number(++pings_);
    pinged_ = now;
    return SendAll(message);
  }

  std::span<const int64_t> busy_ns() const override { return busy_ns_; }
  const GroupInfo& info() const override { return info_; }

 private:
  Status Closed() const { return Fail(Code::kUnavailable, reasons::kGroupClosed, "the group of workers is closed"); }

  Status SendAll(const wire::Message& message) {
    for (auto& member : members_)
      // A rank that computes an earlier step reads no further meanwhile.
      if (auto sent = member.link.Send(message, Deadline::After(limits::kStepTimeout)); !sent)
        return Lose(member, sent.error());
    return {};
  }

  // The first rank that has not answered the oldest step under way; where all have, the one that draws.
  size_t Slowest() const {
    for (size_t r = 0; r < members_.size(); ++r)
      if (!under_way_.empty() && answered_[r] < under_way_.front()) return r;
    return drawing_;
  }

  // The first failure closes the group: a step that some ranks carried out and others did not cannot be taken back.
  Status Lose(const Member& member, Error error) {
    closed_ = true;
    for (auto& other : members_) other.link.Shutdown();
    error.message = "worker " + member.name + ": " + error.message;
    return std::unexpected(std::move(error));
  }

  // Whatever the links hold, after poll: every one is looked at, so that a worker that died is seen while others still wait
  // for it.
  Status TakeAll() {
    for (size_t r = 0; r < members_.size(); ++r) {
      if (polls_[r].revents == 0 && !members_[r].link.has_buffered()) continue;
      polls_[r].revents = 0;
      do {
        SHOAL_RETURN_IF_ERROR(Take(r));
      } while (members_[r].link.has_buffered());
    }
    return {};
  }

  // One message of a worker, if a whole one has come.
  Status Take(size_t r) {
    Member& member = members_[r];
    auto message = member.link.Receive(Deadline{Now()});
    if (!message && message.error().reason == reasons::kPeerTimeout) return {};
    if (!message) return Lose(member, message.error());
    if (message->has_failed()) return Lose(member, SentError(message->failed()));
    if (message->has_goodbye()) return Lose(member, MakeError(Code::kUnavailable, reasons::kPeerLost, "it left"));
    if (message->epoch() != epoch_) return {};  // of an older membership
    if (message->has_pong()) pongs_[r] = std::min(message->pong().number(), pings_);
    if (!message->has_step_result()) return {};
    auto result = DecodeStepResult(message->step_result());
    if (!result) return Lose(member, result.error());
    busy_ns_[r] += result->compute_ns - result->meeting_ns;
    answered_[r] = result->step;
    if (r != drawing_) return {};
    if (under_way_.empty() || result->step != under_way_.front()) return {};
    under_way_.pop_front();
    results_.push_back(*std::move(result));
    return {};
  }

  std::vector<Member> members_;
  const Epoch epoch_;
  const GroupInfo info_;
  const size_t drawing_;  // the rank whose results hold the tokens
  std::vector<pollfd> polls_;
  std::deque<StepId> under_way_;
  std::deque<StepResult> results_;  // of the drawing rank, not yet taken
  uint64_t pings_ = 0;              // sent; pongs_[rank]: the last one answered
  std::vector<uint64_t> pongs_;
  std::vector<StepId> answered_;  // [rank]: its last result
  std::vector<int64_t> busy_ns_;
  Time pinged_{};
  bool closed_ = false;
};

wire::Message LoadMessage(const GgufFile& file, const std::vector<Member>& members, const ShardPlan& plan, Epoch epoch,
                          const std::string& key, size_t rank) {
  wire::Message message;
  message.set_epoch(epoch);
  auto& load = *message.mutable_load_shard();
  load.set_rank(static_cast<uint32_t>(rank));
  EncodeShardPlan(plan, load.mutable_plan());
  for (const auto& member : members) {
    auto& peer = *load.add_peers();
    peer.set_host(member.host);
    peer.set_port(member.data_port);
  }
  load.set_group_key(key);
  load.set_threads(static_cast<uint32_t>(members[rank].threads));
  load.set_model_name(file.name());
  for (int f = 0; f < file.file_count(); ++f) {
    auto& header = *load.add_headers();
    header.set_header_bytes(file.header(f).bytes.size());
    header.set_file_bytes(file.header(f).file_size);
  }
  return message;
}

// Exactness holds within one family of kernels only.
Status SameKernels(const std::vector<Member>& members) {
  for (const auto& member : members)
    if (member.kernel != members[0].kernel)
      return Fail(Code::kUnsupported, reasons::kVersionMismatch,
                  "workers compute with different kernels (" + members[0].name + ": " + members[0].kernel + ", " +
                      member.name + ": " + member.kernel +
                      "), so results would depend on the split; SHOAL_KERNEL=NAME makes a worker take a simpler one");
  return {};
}

}  // namespace

Result<Offer> Introduce(Link& link, std::string host) {
  SHOAL_ASSIGN(const wire::Message message, link.Receive(Deadline::After(limits::kHandshakeTimeout)));
  if (!message.has_worker_info())
    return Fail(Code::kCorrupt, reasons::kBadHandshake, "a worker did not begin by saying what it has to give");
  const auto& info = message.worker_info();
  SHOAL_RETURN_IF_ERROR(CheckWorkerInfo(info));
  return Offer{
      info.name(),         std::move(host), static_cast<uint16_t>(info.data_port()), static_cast<int>(info.threads()),
      info.memory_bytes(), info.kernel()};
}

bool StillWaits(Member& member) {
  const auto message = member.link.Receive(Deadline{Now()});
  return !message && message.error().reason == reasons::kPeerTimeout;
}

Result<std::unique_ptr<Group>> LoadRemoteGroup(std::shared_ptr<const GgufFile> file, std::vector<Member> members,
                                               const ShardPlan& plan, Epoch epoch,
                                               const std::function<void(uint64_t)>& sent) {
  SHOAL_RETURN_IF_ERROR(SameKernels(members));
  const std::string key = NewSecret();
  for (size_t r = 0; r < members.size(); ++r)
    SHOAL_RETURN_IF_ERROR(
        members[r].link.Send(LoadMessage(*file, members, plan, epoch, key, r), Deadline::After(kSendTimeout)));
  std::vector<Result<LoadedShard>> loaded(members.size());
  {
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < members.size(); ++r)
      threads.emplace_back([&, r] {
        loaded[r] = ServeShard(members[r].link, *file, sent);
        if (!loaded[r])
          for (auto& member : members) member.link.Shutdown();  // the others would wait for it in vain
      });
  }
  // The failure that was not caused by another one's is the one to report.
  const Error* failure = nullptr;
  std::string who;
  for (size_t r = 0; r < members.size(); ++r)
    if (!loaded[r] &&
        (failure == nullptr || failure->reason == reasons::kGroupClosed || failure->reason == reasons::kPeerLost)) {
      failure = &loaded[r].error();
      who = members[r].name;
    }
  if (failure != nullptr) {
    Error error = *failure;
    error.message = "worker " + who + ": " + error.message;
    return std::unexpected(std::move(error));
  }
  GroupInfo info{plan, {}, members[0].kernel};
  for (size_t r = 0; r < members.size(); ++r)
    info.ranks.push_back({members[r].name, loaded[r]->weight_bytes, loaded[r]->kv_bytes, members[r].threads});
  return std::unique_ptr<Group>(new RemoteGroup(std::move(members), epoch, std::move(info)));
}

}  // namespace shoal
