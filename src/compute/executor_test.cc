// The executor as ranks call it: what does not fit into one meeting, tied embeddings, weights of any bits, bad batches.
#include "compute/executor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "comm/local.h"
#include "core/reasons.h"
#include "model/file_source.h"
#include "model/gguf.h"
#include "model/spec_reader.h"
#include "tests/support/forwarding_collective.h"
#include "tests/support/shared.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

using kernels::Segment;

// Refuses what is more than a bound, as a network's collective does at kMaxFrameBytes.
class BoundedCollective final : public ForwardingCollective {
 public:
  BoundedCollective(Collective& under, size_t most) : ForwardingCollective(under), most_(most) {}
  Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) override {
    SHOAL_RETURN_IF_ERROR(Bound(own.size_bytes()));
    return under_.AllReduce(shares, own, out);
  }
  Status ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                       std::span<float> out) override {
    SHOAL_RETURN_IF_ERROR(Bound(own.size_bytes()));
    return under_.ReduceScatter(shares, counts, own, out);
  }
  Status AllGather(std::span<const std::byte> own, std::span<const size_t> counts, std::span<std::byte> out) override {
    for (const size_t count : counts) SHOAL_RETURN_IF_ERROR(Bound(count));
    return under_.AllGather(own, counts, out);
  }
  Status Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                std::span<std::byte> out) override {
    for (const size_t count : counts) SHOAL_RETURN_IF_ERROR(Bound(count));
    return under_.Gather(root, own, counts, out);
  }

 private:
  Status Bound(size_t bytes) {
    if (bytes <= most_) return {};
    under_.Close();
    return Fail(Code::kResourceExhausted, reasons::kMeetingMismatch, "a meeting is larger than the limit");
  }

  const size_t most_;
};

// Every byte the same: 0xff makes each float, half and scale a NaN.
class FilledSource final : public TensorSource {
 public:
  explicit FilledSource(int byte) : byte_(byte) {}
  Status Read(const TensorRange&, std::span<std::byte> out) override {
    std::memset(out.data(), byte_, out.size());
    return {};
  }

 private:
  const int byte_;
};

// Gives a tensor a second number.
class RenamingSource final : public TensorSource {
 public:
  RenamingSource(TensorSource& under, uint32_t from, uint32_t to) : under_(under), from_(from), to_(to) {}
  Status Read(const TensorRange& range, std::span<std::byte> out) override {
    TensorRange other = range;
    if (other.tensor == from_) other.tensor = to_;
    return under_.Read(other, out);
  }

 private:
  TensorSource& under_;
  const uint32_t from_, to_;
};

struct Model {
  std::shared_ptr<const GgufFile> file;
  ModelSpec spec;
};

Model Open(const std::filesystem::path& path) {
  auto file = GgufFile::Open(path);
  EXPECT_TRUE(file) << path;
  if (!file) return {};
  auto spec = ReadModelSpec(**file);
  EXPECT_TRUE(spec) << path;
  return {*file, spec ? *spec : ModelSpec{}};
}

class ExecutorTest : public ::testing::Test {
 protected:
  Model Tiny(const TinyModelOptions& options) { return Open(testing::WriteTinyModel(folder_.path(), options)); }
  testing::TemporaryFolder folder_;
};

// One step of `rows` rows of one sequence, the logits of all rows; empty when it fails.
std::vector<float> AllLogits(const ModelSpec& spec, TensorSource& source, const std::vector<SliceRun>& runs, int rows,
                             size_t meeting_bytes = limits::kMaxFrameBytes, int threads = 1) {
  ShardPlan plan;
  for (const auto& run : runs) plan.ranks.push_back({run, 0, spec.n_layers});
  plan.kv_blocks = (rows + limits::kBlockTokens - 1) / limits::kBlockTokens;
  std::vector<TokenId> tokens;
  std::vector<int32_t> wanted;
  for (int r = 0; r < rows; ++r) {
    tokens.push_back(static_cast<TokenId>((r * 37 + 5) % spec.n_vocab));
    wanted.push_back(r);
  }
  std::vector<BlockId> blocks;
  for (int b = plan.kv_blocks - 1; b >= 0; --b) blocks.push_back(b);
  const std::vector<Segment> segments = {{0, rows, 0, blocks}};
  const auto links = MakeLocalGroup(plan.size());
  std::vector<float> out;
  std::vector<std::jthread> ranks;
  for (int rank = 0; rank < plan.size(); ++rank)
    ranks.emplace_back([&, rank] {
      auto& link = *links[static_cast<size_t>(rank)];
      link.SetDeadline(Deadline::After(std::chrono::minutes(2)));
      BoundedCollective collective(link, meeting_bytes);
      auto executor =
          Executor::Load(spec, source, plan, collective, {.threads = threads, .meeting_bytes = meeting_bytes});
      ASSERT_TRUE(executor) << ToString(executor.error());
      const auto logits = (*executor)->Forward({tokens, segments, wanted});
      EXPECT_TRUE(logits) << ToString(logits.error());
      if (rank == 0 && logits) out.assign(logits->begin(), logits->end());
      (void)collective.Barrier();
    });
  ranks.clear();
  return out;
}

TEST_F(ExecutorTest, WhatDoesNotFitIntoOneMeetingGoesInSeveralWithTheSameBits) {
  const Model model = Tiny({.dim = 64, .heads = 16, .kv_heads = 4, .ffn = 512, .vocabulary = 500});
  FileSource source(model.file);
  const auto want = AllLogits(model.spec, source, {{0, 16}}, 40);
  ASSERT_EQ(want.size(), 40u * 500u);
  const std::vector<std::vector<SliceRun>> splits = {{{0, 8}, {8, 16}}, {{0, 1}, {1, 15}, {15, 16}}, {{0, 5}, {5, 16}}};
  for (const auto& split : splits)
    for (const size_t bytes : {size_t{2000}, size_t{7000}, size_t{64} << 20})
      EXPECT_EQ(AllLogits(model.spec, source, split, 40, bytes), want) << split.size() << " ranks, " << bytes;
}

TEST_F(ExecutorTest, TiedEmbeddingsAreHeldOnceAndGiveTheSameAsTwoCopies) {
  for (const bool q8_0 : {false, true}) {
    const Model model = Tiny({.vocabulary = 900, .q8_0 = q8_0, .tied = true});
    FileSource source(model.file);
    const ShardPlan plan{.ranks = {{{0, 16}, 0, model.spec.n_layers}}, .kv_blocks = 1, .reasons = {}};
    const auto links = MakeLocalGroup(1);
    const auto executor = Executor::Load(model.spec, source, plan, *links[0], {});
    ASSERT_TRUE(executor);
    size_t file_bytes = 0;
    for (const auto& tensor : model.file->tensors()) file_bytes += tensor.bytes;
    EXPECT_LT((*executor)->weight_bytes(), file_bytes + file_bytes / 50);
    const auto alone = AllLogits(model.spec, source, {{0, 16}}, 9);
    EXPECT_EQ(AllLogits(model.spec, source, {{0, 3}, {3, 16}}, 9), alone);

    ModelSpec twice = model.spec;
    twice.output.weight.tensor = static_cast<int>(model.file->tensors().size());
    RenamingSource renaming(source, static_cast<uint32_t>(twice.output.weight.tensor),
                            static_cast<uint32_t>(model.spec.embedding.tensor));
    EXPECT_EQ(AllLogits(twice, renaming, {{0, 16}}, 9), alone);
  }
}

TEST_F(ExecutorTest, WeightsOfAnyBitsAreComputedWith) {
  std::vector<std::filesystem::path> files = {testing::WriteTinyModel(folder_.path())};
  for (const char* folder : {"golden/arch", "golden/quant"}) {
    const auto path = testing::SharedPath(folder);
    if (!std::filesystem::exists(path)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".gguf") files.push_back(entry.path());
  }
  for (const auto& file : files) {
    const Model model = Open(file);
    for (const int byte : {0xff, 0x7c, 0x00}) {
      FilledSource source(byte);
      const auto logits = AllLogits(model.spec, source, {{0, 16}}, 5, limits::kMaxFrameBytes, 2);
      EXPECT_EQ(logits.size(), 5u * static_cast<size_t>(model.spec.n_vocab)) << file;
    }
  }
}

TEST_F(ExecutorTest, ABadBatchIsRefusedAndTheNextOneComputed) {
  const Model model = Tiny({.context = 64});
  FileSource source(model.file);
  const ShardPlan plan{.ranks = {{{0, 16}, 0, model.spec.n_layers}}, .kv_blocks = 4, .reasons = {}};
  const auto links = MakeLocalGroup(1);
  const auto executor = *Executor::Load(model.spec, source, plan, *links[0], {});
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {0, 1, 2, 3}, foreign = {4}, negative = {-1};
  const std::vector<int32_t> last = {2};
  const auto refused = [&](std::vector<TokenId> ids, std::vector<Segment> segments, std::vector<int32_t> rows) {
    const auto result = executor->Forward({ids, segments, rows});
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().reason, reasons::kInternal);
  };
  refused({}, {}, {});
  refused(std::vector<TokenId>(limits::kMaxStepRows + 1, 1), {{0, limits::kMaxStepRows + 1, 0, blocks}}, {});
  refused({1, -1, 3}, {{0, 3, 0, blocks}}, last);
  refused({1, model.spec.n_vocab, 3}, {{0, 3, 0, blocks}}, last);
  refused(tokens, {}, last);
  refused(tokens, {{0, 2, 0, blocks}}, last);
  refused(tokens, {{0, 4, 0, blocks}}, last);
  refused(tokens, {{1, 3, 0, blocks}}, last);
  refused(tokens, {{0, 3, -1, blocks}}, last);
  refused(tokens, {{0, 3, 62, blocks}}, last);
  refused(tokens, {{0, 3, 2147483647, blocks}}, last);
  refused(tokens, {{0, 3, 0, {}}}, last);
  refused(tokens, {{0, 3, 0, foreign}}, last);
  refused(tokens, {{0, 3, 0, negative}}, last);
  refused(tokens, {{0, 3, 0, blocks}}, {3});
  refused(tokens, {{0, 3, 0, blocks}}, {1, 1});
  refused(tokens, {{0, 3, 0, blocks}}, {-1});
  const std::vector<Segment> good = {{0, 3, 0, blocks}};
  EXPECT_TRUE(executor->Forward({tokens, good, last}));
}

}  // namespace
}  // namespace shoal
