#include "engine/worker.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "base/checked.h"
#include "base/log.h"
#include "base/machine.h"
#include "comm/tcp.h"
#include "compute/kernels/linear.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "engine/rank.h"
#include "engine/remote_source.h"
#include "engine/shard_server.h"
#include "model/gguf.h"
#include "model/spec_reader.h"
#include "net/codec.h"
#include "net/handshake.h"
#include "net/mesh.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

constexpr std::chrono::hours kNoHurry{24 * 365};  // an idle worker waits for its head as long as the link lives
constexpr Nanos kSpin = std::chrono::microseconds(50);
constexpr std::chrono::seconds kSendTimeout{10};

class Worker {
 public:
  Worker(Link& link, Listener listener, const WorkerOptions& options)
      : link_(link), listener_(std::move(listener)), options_(options) {}

  Status Introduce();
  // Handles one message; false at goodbye.
  Result<bool> Handle(const wire::Message& message);
  void TellFailure(const Error& error);

 private:
  Result<LoadedShard> Load(const wire::LoadShard& load);
  Result<std::shared_ptr<const GgufFile>> FetchHeaders(const wire::LoadShard& load, RemoteSource& source);
  Status JoinRanks(const wire::LoadShard& load, const ShardPlan& plan);
  Status Carry(const wire::Step& step);
  void SetDeadline(Deadline deadline);
  Status CheckLent(const ModelSpec& spec, const ShardPlan& plan, uint32_t rank) const;

  Link& link_;
  Listener listener_;
  const WorkerOptions options_;
  Epoch epoch_ = 0;
  std::unique_ptr<Collective> stage_;
  std::unique_ptr<Collective> group_;  // null where there is one stage
  std::unique_ptr<Rank> rank_;
};

Status Worker::Introduce() {
  wire::Message message;
  auto& info = *message.mutable_worker_info();
  info.set_name(options_.name);
  info.set_threads(static_cast<uint32_t>(options_.threads));
  info.set_cores(static_cast<uint32_t>(AvailableCores()));
  info.set_memory_bytes(options_.memory);
  info.set_kernel(std::string(kernels::TargetName()));
  info.set_data_port(listener_.port());
  info.set_pid(static_cast<uint64_t>(getpid()));
  return link_.Send(message, Deadline::After(kSendTimeout));
}

Result<std::shared_ptr<const GgufFile>> Worker::FetchHeaders(const wire::LoadShard& load, RemoteSource& source) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<GgufFile::Header> headers;
  uint64_t left = limits::kMaxMetadataBytes;
  for (int f = 0; f < load.headers_size(); ++f) {
    const uint64_t size = load.headers(f).header_bytes();
    if (size > left)
      return Fail(Code::kCorrupt, reasons::kModelCorrupt, "the model's header is larger than this worker takes");
    left -= size;
    try {
      bytes.emplace_back(size);
    } catch (const std::bad_alloc&) {
      return Fail(Code::kResourceExhausted, reasons::kOutOfMemory, "no memory for the model's header",
                  std::to_string(size) + " bytes");
    }
    SHOAL_RETURN_IF_ERROR(source.ReadHeader(static_cast<uint32_t>(f), 0, bytes.back()));
  }
  for (int f = 0; f < load.headers_size(); ++f) headers.push_back({bytes[f], load.headers(f).file_bytes()});
  return GgufFile::ParseHeaders(headers);
}

// One mesh of links: those inside the stage carry its meetings, the others what stages pass on.
Status Worker::JoinRanks(const wire::LoadShard& load, const ShardPlan& plan) {
  MeshOptions mesh;
  mesh.rank = static_cast<int>(load.rank());
  mesh.group_key = load.group_key();
  mesh.epoch = epoch_;
  for (const auto& peer : load.peers()) mesh.peers.push_back({peer.host(), static_cast<uint16_t>(peer.port())});
  SHOAL_ASSIGN(auto links, JoinMesh(listener_, mesh, Deadline::After(limits::kHandshakeTimeout)));
  // All ranks are on this machine in this first form, so it is their threads together that share its cores.
  const TcpOptions options{.threads_here = static_cast<int>(load.threads()) * load.peers_size()};
  const std::vector<Stage> stages = StagesOf(plan);
  const auto own =
      std::ranges::find_if(stages, [&](const Stage& stage) { return mesh.rank < stage.first_rank + stage.ranks; });
  std::vector<Fd> inside;
  for (int r = own->first_rank; r < own->first_rank + own->ranks; ++r)
    inside.push_back(std::move(links[static_cast<size_t>(r)]));
  SHOAL_ASSIGN(stage_, MakeTcpRank(mesh.rank - own->first_rank, std::move(inside), options));
  if (stages.size() > 1) {
    SHOAL_ASSIGN(group_, MakeTcpRank(mesh.rank, std::move(links), options));
  }
  return {};
}

void Worker::SetDeadline(Deadline deadline) {
  stage_->SetDeadline(deadline);
  if (group_) group_->SetDeadline(deadline);
}

// A head that is right asks for no more than was lent, by the same reckoning.
Status Worker::CheckLent(const ModelSpec& spec, const ShardPlan& plan, uint32_t rank) const {
  const RankShare& share = plan.ranks[rank];
  const uint64_t weights = ShareWeightBytes(spec, share);
  const auto cache =
      CheckedMul<uint64_t>(KvBlockBytes(spec, share, plan.kv_type), static_cast<uint64_t>(plan.kv_blocks));
  if (cache && weights <= options_.memory && *cache <= options_.memory - weights) return {};
  return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
              "the plan asks for more memory than this worker lends (" + std::to_string(options_.memory) + " bytes)",
              std::to_string(weights) + " bytes of weights, " + std::to_string(plan.kv_blocks) + " blocks of " +
                  std::to_string(KvBlockBytes(spec, share, plan.kv_type)) + " bytes of KV cache");
}

Result<LoadedShard> Worker::Load(const wire::LoadShard& load) {
  SHOAL_RETURN_IF_ERROR(CheckLoadShard(load));
  SHOAL_ASSIGN(const ShardPlan plan, DecodeShardPlan(load.plan()));
  if (rank_) return Fail(Code::kUnsupported, reasons::kBadFrame, "this worker already holds a shard");
  RemoteSource source(link_);
  SHOAL_ASSIGN(const auto file, FetchHeaders(load, source));
  SHOAL_ASSIGN(const ModelSpec spec, ReadModelSpec(*file));
  SHOAL_RETURN_IF_ERROR(CheckShardPlan(plan, spec.n_layers));
  SHOAL_RETURN_IF_ERROR(CheckLent(spec, plan, load.rank()));
  SHOAL_RETURN_IF_ERROR(JoinRanks(load, plan));
  SetDeadline(Deadline::After(limits::kLoadTimeout));
  SHOAL_ASSIGN(rank_, Rank::Load(spec, source, plan, static_cast<int>(load.rank()), {*stage_, group_.get()},
                                 {.threads = static_cast<int>(load.threads())}));
  Log().info("rank {} of {}: {}: {:.1f} MB read, {:.1f} MB of weights held", load.rank(), plan.size(),
             load.model_name(), static_cast<double>(source.bytes_read()) / 1e6,
             static_cast<double>(rank_->executor().weight_bytes()) / 1e6);
  return LoadedShard{rank_->executor().weight_bytes(), rank_->executor().kv_bytes()};
}

Status Worker::Carry(const wire::Step& step) {
  if (!rank_) return Fail(Code::kCorrupt, reasons::kBadFrame, "a step came before a shard");
  SHOAL_ASSIGN(const StepPlan plan, DecodeStep(step));
  SetDeadline(Deadline::After(limits::kStepTimeout));
  SHOAL_ASSIGN(const StepResult result, rank_->Execute(plan));
  wire::Message message;
  message.set_epoch(epoch_);
  EncodeStepResult(result, message.mutable_step_result());
  return link_.Send(message, Deadline::After(kSendTimeout));
}

Result<bool> Worker::Handle(const wire::Message& message) {
  if (message.has_goodbye()) return false;
  if (message.has_ping()) {
    wire::Message answer;
    answer.set_epoch(message.epoch());
    answer.mutable_pong()->set_number(message.ping().number());
    SHOAL_RETURN_IF_ERROR(link_.Send(answer, Deadline::After(kSendTimeout)));
    return true;
  }
  if (message.has_load_shard()) {
    epoch_ = message.epoch();
    SHOAL_ASSIGN(const LoadedShard loaded, Load(message.load_shard()));
    wire::Message answer;
    answer.set_epoch(epoch_);
    answer.mutable_loaded()->set_weight_bytes(loaded.weight_bytes);
    answer.mutable_loaded()->set_kv_bytes(loaded.kv_bytes);
    SHOAL_RETURN_IF_ERROR(link_.Send(answer, Deadline::After(kSendTimeout)));
    return true;
  }
  if (message.epoch() != epoch_) return true;  // of an older membership: dropped
  if (!message.has_step())
    return Fail(Code::kCorrupt, reasons::kBadFrame, "the head sent a message that a worker does not take");
  SHOAL_RETURN_IF_ERROR(Carry(message.step()));
  return true;
}

void Worker::TellFailure(const Error& error) {
  // The other ranks need not wait for a deadline.
  if (stage_) stage_->Close();
  if (group_) group_->Close();
  wire::Message message;
  message.set_epoch(epoch_);
  EncodeError(error, message.mutable_failed()->mutable_error());
  (void)link_.Send(message, Deadline::After(std::chrono::seconds(1)));  // the head may be what was lost
}

}  // namespace

Status ServeHead(Link& link, const WorkerOptions& options) {
  SHOAL_ASSIGN(Listener listener, Listener::Open("127.0.0.1", 0));
  Worker worker(link, std::move(listener), options);
  SHOAL_RETURN_IF_ERROR(worker.Introduce());
  link.SetSpin(kSpin);
  for (;;) {
    SHOAL_ASSIGN(const wire::Message message, link.Receive(Deadline::After(kNoHurry)));
    auto goes_on = worker.Handle(message);
    if (!goes_on) {
      worker.TellFailure(goes_on.error());
      return std::unexpected(goes_on.error());
    }
    if (!*goes_on) return {};
  }
}

}  // namespace shoal
