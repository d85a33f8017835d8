#include "engine/remote_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "compute/executor.h"
#include "core/reasons.h"
#include "engine/local_group.h"
#include "engine/worker.h"
#include "model/file_source.h"
#include "model/spec_reader.h"
#include "net/codec.h"
#include "net/wire.pb.h"
#include "tests/support/link_pair.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

constexpr Epoch kEpoch = 5;

using testing::LinkPair;
using testing::Soon;

struct Model {
  Model() : path(testing::WriteTinyModel(folder.path())), file(*GgufFile::Open(path)), spec(*ReadModelSpec(*file)) {}
  ShardPlan Plan(const std::vector<double>& weights) const {
    ShardPlan plan;
    for (const SliceRun run : ShareSlices(weights)) plan.ranks.push_back({run, 0, spec.n_layers});
    plan.kv_blocks = 8;
    return plan;
  }
  testing::TemporaryFolder folder;
  std::filesystem::path path;
  std::shared_ptr<const GgufFile> file;
  ModelSpec spec;
};

Member MemberOf(Link link, const std::string& name) {
  return {Offer{name, "127.0.0.1", 9, 1, 1u << 30, "same"}, std::move(link)};
}

// Workers that only say what a test has them say.
struct Pretend {
  explicit Pretend(int count) {
    std::vector<Member> members;
    for (int r = 0; r < count; ++r) {
      auto [head, worker] = LinkPair();
      members.push_back(MemberOf(std::move(head), "w" + std::to_string(r)));
      workers.push_back(std::move(worker));
      wire::Message loaded;
      loaded.mutable_loaded()->set_weight_bytes(1);
      EXPECT_TRUE(workers.back().Send(loaded, Soon()).has_value());
    }
    auto made = LoadRemoteGroup(model.file, std::move(members), model.Plan(std::vector<double>(workers.size(), 1.0)),
                                kEpoch, [](uint64_t) {});
    EXPECT_TRUE(made.has_value()) << ToString(made.error());
    group = *std::move(made);
    for (Link& worker : workers) EXPECT_TRUE(worker.Receive(Soon())->has_load_shard());
  }
  void Answer(int rank, StepId step, TokenId token, Epoch epoch = kEpoch) {
    StepResult result;
    result.step = step;
    SampledToken drawn;
    drawn.id = 1;
    drawn.token = token;
    result.tokens.push_back(drawn);
    wire::Message message;
    message.set_epoch(epoch);
    EncodeStepResult(result, message.mutable_step_result());
    EXPECT_TRUE(workers[static_cast<size_t>(rank)].Send(message, Soon()).has_value());
  }
  Model model;
  std::vector<Link> workers;
  std::unique_ptr<Group> group;
};

StepPlan Step(StepId step) {
  StepPlan plan;
  plan.step = step;
  return plan;
}

TEST(RemoteGroup, TakesTheResultOfItsStepAndEpochAlone) {
  Pretend pretend(2);
  ASSERT_TRUE(pretend.group->Start(Step(7)).has_value());
  pretend.Answer(0, 7, 1, kEpoch - 1);  // an older membership
  pretend.Answer(0, 6, 2);              // an older step
  pretend.Answer(0, 8, 3);              // one that was never asked for
  pretend.Answer(1, 7, 4);              // not the rank that draws
  pretend.Answer(0, 7, 5);
  const auto result = pretend.group->Wait(Soon());
  ASSERT_TRUE(result.has_value()) << ToString(result.error());
  ASSERT_EQ(result->tokens.size(), 1u);
  EXPECT_EQ(result->tokens[0].token, 5);
  // Nothing of the step before is taken for the next one's.
  ASSERT_TRUE(pretend.group->Start(Step(8)).has_value());
  pretend.Answer(0, 7, 6);
  const auto none = pretend.group->Wait(Deadline{Now()});
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().reason, reasons::kPeerTimeout);
  EXPECT_EQ(pretend.group->Wait(Soon()).error().reason, reasons::kGroupClosed);
  EXPECT_EQ(pretend.group->Start(Step(9)).error().reason, reasons::kGroupClosed);
  EXPECT_EQ(pretend.group->Check().error().reason, reasons::kGroupClosed);
}

TEST(RemoteGroup, AnyWorkersEndIsSeenWhileRankZeroIsAwaited) {
  Pretend pretend(3);
  ASSERT_TRUE(pretend.group->Start(Step(1)).has_value());
  pretend.workers[2].Shutdown();
  const auto result = pretend.group->Wait(Soon());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().reason, reasons::kPeerLost);
  EXPECT_NE(result.error().message.find("w2"), std::string::npos) << ToString(result.error());
}

TEST(RemoteGroup, AWorkersEndIsSeenBetweenSteps) {
  Pretend pretend(3);
  EXPECT_TRUE(pretend.group->Check().has_value());
  pretend.workers[1].Shutdown();
  const Status checked = pretend.group->Check();
  ASSERT_FALSE(checked.has_value());
  EXPECT_EQ(checked.error().reason, reasons::kPeerLost);
  EXPECT_NE(checked.error().message.find("w1"), std::string::npos) << ToString(checked.error());
  EXPECT_EQ(pretend.group->Start(Step(1)).error().reason, reasons::kGroupClosed);
}

TEST(RemoteGroup, AWorkersFailureAndGoodbyeEndTheGroup) {
  {
    Pretend pretend(2);
    wire::Message message;
    EncodeError(MakeError(Code::kInternal, reasons::kIo, "the disk is gone"),
                message.mutable_failed()->mutable_error());
    ASSERT_TRUE(pretend.workers[1].Send(message, Soon()).has_value());
    EXPECT_EQ(pretend.group->Check().error().reason, reasons::kIo);
  }
  Pretend pretend(2);
  wire::Message message;
  message.mutable_goodbye()->set_why("enough");
  ASSERT_TRUE(pretend.workers[0].Send(message, Soon()).has_value());
  EXPECT_EQ(pretend.group->Check().error().reason, reasons::kPeerLost);
}

TEST(RemoteGroup, AnIdleGroupIsAskedForASignOfLife) {
  Pretend pretend(2);
  ASSERT_TRUE(pretend.group->Check().has_value());
  for (Link& worker : pretend.workers) {
    const auto ping = worker.Receive(Soon());
    ASSERT_TRUE(ping.has_value() && ping->has_ping());
    wire::Message pong;
    pong.set_epoch(kEpoch);
    pong.mutable_pong()->set_number(ping->ping().number());
    ASSERT_TRUE(worker.Send(pong, Soon()).has_value());
  }
  ASSERT_TRUE(pretend.group->Check().has_value());
}

TEST(RemoteGroup, DifferentKernelsAreRefused) {
  Model model;
  auto [head0, worker0] = LinkPair();
  auto [head1, worker1] = LinkPair();
  std::vector<Member> members;
  members.push_back(MemberOf(std::move(head0), "a"));
  members.push_back(MemberOf(std::move(head1), "b"));
  members[1].kernel = "other";
  const auto group = LoadRemoteGroup(model.file, std::move(members), model.Plan({1, 1}), kEpoch, [](uint64_t) {});
  ASSERT_FALSE(group.has_value());
  EXPECT_EQ(group.error().reason, reasons::kVersionMismatch);
}

StepPlan Prompt(bool sample = true) {
  StepPlan plan;
  plan.step = 1;
  SequenceStart start;
  start.id = 1;
  start.tokens = {1, 40, 41, 42, 43};
  start.prompt_length = 5;
  start.sampling.temperature = 0;
  start.sampling.want_logits = true;
  plan.added.push_back(start);
  plan.chunks.push_back({});
  plan.chunks.back().id = 1;
  plan.chunks.back().count = 5;
  plan.chunks.back().new_blocks = {0};
  plan.chunks.back().sample = sample;
  return plan;
}

// Real workers on threads of this process: each reads no more than its share, and they compute what one rank alone does.
TEST(Worker, ReadsItsSlicesAloneAndComputesTheSame) {
  Model model;
  FileSource source(model.file);
  auto alone = LoadLocalGroup(model.spec, source, model.Plan({1}), 1);
  ASSERT_TRUE(alone.has_value());
  ASSERT_TRUE((*alone)->Start(Prompt()).has_value());
  const auto wanted = (*alone)->Wait(Soon());
  ASSERT_TRUE(wanted.has_value()) << ToString(wanted.error());

  const std::vector<double> weights = {3, 1};
  const ShardPlan plan = model.Plan(weights);
  std::vector<Member> members;
  std::vector<Link> ends;
  for (size_t r = 0; r < weights.size(); ++r) {
    auto [head, worker] = LinkPair();
    members.push_back({Offer{}, std::move(head)});
    ends.push_back(std::move(worker));
  }
  std::vector<Status> ended(weights.size());
  {
    std::vector<std::jthread> workers;
    for (size_t r = 0; r < weights.size(); ++r)
      workers.emplace_back([&, r] { ended[r] = ServeHead(ends[r], {"w" + std::to_string(r), 1, 1u << 30}); });
    for (Member& member : members) {
      auto offer = Introduce(member.link, "127.0.0.1");
      ASSERT_TRUE(offer.has_value()) << ToString(offer.error());
      static_cast<Offer&>(member) = *std::move(offer);
    }
    std::atomic<uint64_t> sent{0};
    auto group = LoadRemoteGroup(model.file, std::move(members), plan, kEpoch, [&](uint64_t bytes) { sent += bytes; });
    ASSERT_TRUE(group.has_value()) << ToString(group.error());
    // Both read the header; norms and biases are everyone's, all else is read once.
    const uint64_t headers = model.file->header(0).bytes.size() * weights.size();
    uint64_t shared = 0;
    for (const auto& tensor : model.file->tensors())
      if (tensor.dims.size() == 1) shared += tensor.bytes;
    const uint64_t embedding = model.file->FindTensor("token_embd.weight")->bytes;
    EXPECT_GE(sent, headers + model.spec.tensor_bytes);
    EXPECT_LE(sent, headers + model.spec.tensor_bytes + shared + embedding);
    ASSERT_TRUE((*group)->Check().has_value());
    ASSERT_TRUE((*group)->Start(Prompt()).has_value());
    const auto result = (*group)->Wait(Soon());
    ASSERT_TRUE(result.has_value()) << ToString(result.error());
    ASSERT_EQ(result->tokens.size(), 1u);
    EXPECT_EQ(result->tokens[0].token, wanted->tokens[0].token);
    EXPECT_EQ(result->tokens[0].logits, wanted->tokens[0].logits);
  }  // the group says goodbye
  for (const Status& status : ended) EXPECT_TRUE(status.has_value()) << ToString(status.error());
}

// A head that says `message` to a fresh worker; how the worker ends.
Status WorkerTold(const wire::Message& message) {
  auto [head, end] = LinkPair();
  Status ended;
  std::jthread worker([&, &link = end] { ended = ServeHead(link, {"w", 1, 1u << 30}); });
  EXPECT_TRUE(Introduce(head, "127.0.0.1").has_value());
  EXPECT_TRUE(head.Send(message, Soon()).has_value());
  wire::Message bye;
  bye.mutable_goodbye()->set_why("done");
  (void)head.Send(bye, Soon());
  worker.join();
  return ended;
}

TEST(Worker, DropsStaleEpochsAndRefusesNonsense) {
  wire::Message step;
  step.set_epoch(3);
  EncodeStep(Prompt(), step.mutable_step());
  EXPECT_TRUE(WorkerTold(step).has_value());  // of a membership that this worker never had
  step.set_epoch(0);
  EXPECT_EQ(WorkerTold(step).error().reason, reasons::kBadFrame);  // a step before a shard
  wire::Message info;
  info.mutable_worker_info()->set_name("head?");
  EXPECT_EQ(WorkerTold(info).error().reason, reasons::kBadFrame);
  wire::Message load;
  load.mutable_load_shard()->set_rank(3);
  EXPECT_EQ(WorkerTold(load).error().reason, reasons::kBadFrame);
}

// How a head fares that sends its plan to one worker who lends so much.
Result<std::unique_ptr<Group>> LoadOn(const Model& model, uint64_t memory) {
  auto [head, end] = LinkPair();
  std::jthread worker([memory, &link = end] { (void)ServeHead(link, {"small", 1, memory}); });
  auto offer = Introduce(head, "127.0.0.1");
  EXPECT_TRUE(offer.has_value());
  std::vector<Member> members;
  members.push_back({*std::move(offer), std::move(head)});
  auto group = LoadRemoteGroup(model.file, std::move(members), model.Plan({1}), kEpoch, [](uint64_t) {});
  if (group) (*group).reset();  // says goodbye, so that the worker ends
  return group;
}

TEST(Worker, LendsNoMoreThanItSaid) {
  const Model model;
  const ShardPlan plan = model.Plan({1});
  const uint64_t needed = ShareWeightBytes(model.spec, plan.ranks[0]) +
                          KvBlockBytes(model.spec, plan.ranks[0], plan.kv_type) * static_cast<uint64_t>(plan.kv_blocks);
  EXPECT_TRUE(LoadOn(model, needed).has_value());
  for (const uint64_t memory : {needed - 1, uint64_t{1}}) {
    const auto group = LoadOn(model, memory);
    ASSERT_FALSE(group.has_value());
    EXPECT_EQ(group.error().reason, reasons::kOutOfMemory);
    EXPECT_NE(group.error().message.find("small"), std::string::npos) << ToString(group.error());
    EXPECT_NE(group.error().message.find("lends (" + std::to_string(memory) + " bytes)"), std::string::npos)
        << ToString(group.error());
  }
}

TEST(Worker, AHeadThatVanishesIsALostPeer) {
  auto [head, end] = LinkPair();
  Status ended;
  std::jthread worker([&, &link = end] { ended = ServeHead(link, {"w", 1, 1u << 30}); });
  EXPECT_TRUE(Introduce(head, "127.0.0.1").has_value());
  head.Shutdown();
  worker.join();
  ASSERT_FALSE(ended.has_value());
  EXPECT_EQ(ended.error().reason, reasons::kPeerLost);
}

}  // namespace
}  // namespace shoal
