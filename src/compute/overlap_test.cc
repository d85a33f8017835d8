// Steps in parts: where they are cut, that no bit of the logits depends on it, and that a lost rank ends them at once.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <new>
#include <optional>
#include <thread>

#include "comm/local.h"
#include "compute/executor.h"
#include "compute/parts.h"
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

TEST(Parts, HoldWholeGroupsWhereThereAreAsMany) {
  std::string text;
  for (const int rows : {2, 3, 16, 17, 31, 33, 64, 128, 191, 192, 200, 256, 257, 511, 512}) {
    for (const int part : PartRows(rows)) text += std::to_string(part) + " ";
    text += "| ";
  }
  EXPECT_EQ(text,
            "1 1 | 2 1 | 8 8 | 16 1 | 16 15 | 32 1 | 32 32 | 64 64 | 96 95 | 64 64 64 | 80 64 56 | 64 64 64 64 | 80 64 "
            "64 49 | "
            "128 128 128 127 | 128 128 128 128 | ");
}

TEST(Parts, ASegmentOverACutIsCutToo) {
  std::vector<TokenId> tokens(40);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i);
  const std::vector<BlockId> a = {3}, b = {1, 2}, c = {0};
  const std::vector<Segment> segments = {{0, 10, 5, a}, {10, 29, 100, b}, {39, 1, 7, c}};
  const std::vector<int32_t> logits = {9, 31, 32, 39};
  const auto parts = CutInParts({tokens, segments, logits});
  const auto text = [](const RowPart& part) {
    std::string out;
    for (const auto& s : part.segments)
      out += std::to_string(s.first_row) + "+" + std::to_string(s.rows) + "@" + std::to_string(s.first_position) + "/" +
             std::to_string(s.blocks[0]) + " ";
    for (const int32_t row : part.logit_rows) out += "*" + std::to_string(row);
    return out + " " + std::to_string(part.tokens.front()) + ".." + std::to_string(part.tokens.back());
  };
  EXPECT_EQ(text(parts[0]), "0+10@5/3 10+22@100/1 *9*31 0..31");
  EXPECT_EQ(text(parts[1]), "0+7@122/1 7+1@7/0 *0*7 32..39");
}

struct Model {
  std::shared_ptr<const GgufFile> file;
  ModelSpec spec;
};

Model Open(const std::filesystem::path& path) {
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file) << path;
  const auto spec = ReadModelSpec(**file);
  EXPECT_TRUE(spec) << path;
  return {*file, *spec};
}

// Steps over four sequences: prompts in pieces beside others, single rows, a few rows, many.
struct Step {
  struct Piece {
    int sequence = 0, first = 0, rows = 0;
  };
  std::vector<Piece> pieces;
  bool all_logits = false;
};
constexpr int kShortBlocks = 7, kLongBlocks = 26;
const std::vector<Step> kSteps = {
    {{{0, 0, 37}}, false},
    {{{1, 0, 2}, {0, 37, 13}, {2, 0, 4}}, true},
    {{{0, 50, 1}, {1, 2, 1}, {2, 4, 1}}, true},
    {{{0, 51, 1}, {1, 3, 30}, {2, 5, 2}}, true},
    {{{0, 52, 1}}, true},
    {{{2, 7, 2}}, false},
    {{{3, 0, 199}, {2, 9, 2}, {1, 33, 1}}, false},
    {{{3, 199, 200}, {2, 11, 1}, {1, 34, 60}}, true},
};

std::string Bytes(std::span<const float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// Carries the steps out on one rank; the logits of all.
std::string Carry(const ModelSpec& spec, Executor& executor, bool overlap) {
  std::string out;
  for (const Step& step : kSteps) {
    std::vector<TokenId> tokens;
    std::vector<Segment> segments;
    std::vector<int32_t> logits;
    std::vector<std::vector<BlockId>> blocks;
    for (const auto& piece : step.pieces) {  // in no order
      std::vector<BlockId>& table = blocks.emplace_back();
      const int first = kShortBlocks * piece.sequence, count = piece.sequence == 3 ? kLongBlocks : kShortBlocks;
      for (int b = 0; b < count; ++b) table.push_back(first + (b * 5 + 3) % count);
    }
    for (size_t i = 0; i < step.pieces.size(); ++i) {
      const auto& piece = step.pieces[i];
      segments.push_back({static_cast<int>(tokens.size()), piece.rows, piece.first, blocks[i]});
      for (int r = 0; r < piece.rows; ++r) {
        if (step.all_logits || (i + 1 == step.pieces.size() && r + 1 == piece.rows))
          logits.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(static_cast<TokenId>(((piece.first + r) * 37 + 11 * piece.sequence + 5) % spec.n_vocab));
      }
    }
    const auto result = executor.Forward({tokens, segments, logits, overlap});
    EXPECT_TRUE(result) << ToString(result.error());
    if (!result) return out;
    out += Bytes(*result);
  }
  return out;
}

std::string AllLogits(const Model& model, const std::vector<SliceRun>& runs, bool overlap, int threads = 1,
                      size_t meeting_bytes = limits::kMaxFrameBytes) {
  ShardPlan plan;
  for (const auto& run : runs) plan.ranks.push_back({run, 0, model.spec.n_layers});
  plan.kv_blocks = 3 * kShortBlocks + kLongBlocks;
  FileSource source(model.file);
  const auto links = MakeLocalGroup(plan.size());
  std::vector<std::string> outs(runs.size());
  std::vector<std::jthread> ranks;
  for (size_t rank = 0; rank < runs.size(); ++rank)
    ranks.emplace_back([&, rank] {
      links[rank]->SetDeadline(Deadline::After(std::chrono::minutes(2)));
      auto executor =
          Executor::Load(model.spec, source, plan, *links[rank], {.threads = threads, .meeting_bytes = meeting_bytes});
      ASSERT_TRUE(executor) << ToString(executor.error());
      outs[rank] = Carry(model.spec, **executor, overlap);
      (void)links[rank]->Barrier();
    });
  ranks.clear();
  for (size_t rank = 1; rank < runs.size(); ++rank) EXPECT_EQ(outs[rank], "");
  return outs[0];
}

const std::vector<std::vector<SliceRun>> kSplits = {
    {{0, 16}}, {{0, 8}, {8, 16}}, {{0, 1}, {1, 16}}, {{0, 5}, {5, 9}, {9, 16}}, {{0, 4}, {4, 8}, {8, 12}, {12, 16}},
};

TEST(Overlap, ChangesNoBitOfAnyArchitecture) {
  testing::TemporaryFolder folder;
  std::map<std::string, std::filesystem::path> files = {
      {"tiny", testing::WriteTinyModel(folder.path(), {.layers = 3, .heads = 16, .kv_heads = 4, .ffn = 512})}};
  // Experts, a norm of the whole query vector, an FFN beside the attention, positions that are learned, windows, ...
  if (const auto shared = testing::SharedPath("golden/arch"); std::filesystem::exists(shared))
    for (const auto& entry : std::filesystem::directory_iterator(shared))
      if (entry.path().extension() == ".gguf") files[entry.path().stem()] = entry.path();
  for (const auto& [name, path] : files) {
    const Model model = Open(path);
    const std::string wanted = AllLogits(model, kSplits[0], false);
    ASSERT_FALSE(wanted.empty());
    for (const auto& split : kSplits)
      EXPECT_TRUE(AllLogits(model, split, true) == wanted) << name << " over " << split.size() << " ranks";
    EXPECT_TRUE(AllLogits(model, kSplits[1], true, 2, 3000) == wanted) << name << " in small meetings, two threads";
  }
}

// What a rank does instead of coming to its all-reduce of this number, or before; a failure keeps it away.
using Hook = std::function<Status(int number, Collective& under)>;

class HookedCollective final : public ForwardingCollective {
 public:
  HookedCollective(Collective& under, Hook hook) : ForwardingCollective(under), hook_(std::move(hook)) {}
  Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) override {
    if (hook_) SHOAL_RETURN_IF_ERROR(hook_(number_++, under_));
    return under_.AllReduce(shares, own, out);
  }

 private:
  const Hook hook_;
  int number_ = 0;
};

// One step of 40 rows on each of some ranks. No meeting has a deadline; where the step is not over in a minute all the same, the
// test ends it, and fails.
class OneStep {
 public:
  explicit OneStep(int ranks)
      : model_(Open(testing::WriteTinyModel(folder_.path(), {.layers = 3, .heads = 16, .kv_heads = 4}))),
        source_(model_.file),
        links_(MakeLocalGroup(ranks)) {
    plan_.kv_blocks = 4;
    for (int r = 0; r < ranks; ++r) plan_.ranks.push_back({{16 * r / ranks, 16 * (r + 1) / ranks}, 0, 3});
  }

  // What came of it on each rank; kNoReason: logits, or nothing where they are not.
  std::vector<Reason> Run(const std::map<size_t, Hook>& hooks, bool overlap = true) {
    std::vector<Reason> reasons(links_.size(), kNoReason);
    std::vector<std::promise<void>> ends(links_.size());
    std::vector<std::jthread> ranks;
    for (size_t rank = 0; rank < links_.size(); ++rank)
      ranks.emplace_back([&, rank] {
        if (auto failed = Execute(rank, hooks.contains(rank) ? hooks.at(rank) : Hook(), overlap))
          reasons[rank] = failed->reason;
        ends[rank].set_value();
      });
    const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    for (auto& end : ends)
      if (end.get_future().wait_until(until) != std::future_status::ready) {
        ADD_FAILURE() << "a rank waits for ever";
        for (auto& link : links_) link->Close();
        break;
      }
    ranks.clear();
    return reasons;
  }

 private:
  std::optional<Error> Execute(size_t rank, const Hook& hook, bool overlap) {
    links_[rank]->SetDeadline({Time::max()});
    HookedCollective hooked(*links_[rank], hook);
    const auto executor = Executor::Load(model_.spec, source_, plan_, hooked, {});
    if (!executor) return executor.error();
    const std::vector<TokenId> tokens(40, 7);
    const std::vector<BlockId> blocks = {0, 1, 2};
    const std::vector<Segment> segments = {{0, 40, 0, blocks}};
    const std::vector<int32_t> wanted = {0, 39};  // of both parts
    const auto result = (*executor)->Forward({tokens, segments, wanted, overlap});
    if (!result) return result.error();
    return std::nullopt;
  }

  testing::TemporaryFolder folder_;
  Model model_;
  FileSource source_;
  ShardPlan plan_;
  std::vector<std::unique_ptr<Collective>> links_;
};

TEST(Overlap, PartsMeetEachForThemselves) {
  for (const bool overlap : {false, true}) {
    int meetings = 0;
    const auto reasons = OneStep(2).Run({{0,
                                          [&](int, Collective&) {
                                            ++meetings;
                                            return Status{};
                                          }}},
                                        overlap);
    EXPECT_EQ(reasons, std::vector(2, kNoReason));
    EXPECT_EQ(meetings, overlap ? 3 * 2 * 2 : 3 * 2) << "two a layer, and part";
  }
}

TEST(Overlap, ALostRankEndsTheStepOnAllOthers) {
  for (const int last : {0, 1, 4, 9}) {
    const auto reasons = OneStep(3).Run({{1, [last](int number, Collective& under) {
                                            if (number == last) under.Close();
                                            return Status{};
                                          }}});
    EXPECT_EQ(reasons, (std::vector{reasons::kPeerLost, reasons::kGroupClosed, reasons::kPeerLost})) << last;
  }
}

TEST(Overlap, AMeetingThatFailsOnOneRankAloneEndsTheStepOnAll) {
  for (const int last : {0, 1, 4, 9, 11})
    for (const bool throws : {false, true}) {
      // It stays away from all later ones too, and the group is open.
      const auto reasons = OneStep(3).Run({{1, [=](int number, Collective&) -> Status {
                                              if (number < last) return {};
                                              if (throws) throw std::bad_alloc();
                                              return Fail(Code::kInternal, reasons::kInternal, "no");
                                            }}});
      const Reason own = throws ? reasons::kOutOfMemory : reasons::kInternal;
      EXPECT_EQ(reasons, (std::vector{reasons::kPeerLost, own, reasons::kPeerLost})) << last;
    }
}

TEST(Overlap, AnotherThreadMayEndAStepThatWaits) {
  // Rank 1 stays away; rank 0 is in its first meeting, or about to be, when another thread closes the group.
  std::promise<void> comes;
  std::promise<void> closed;
  Collective* waits = nullptr;
  std::jthread closes([&] {
    comes.get_future().wait();
    waits->Close();
    closed.set_value();
  });
  const auto reasons = OneStep(2).Run({{0,
                                        [&](int number, Collective& under) {
                                          if (number > 0) return Status{};
                                          waits = &under;
                                          comes.set_value();
                                          return Status{};
                                        }},
                                       {1, [&](int number, Collective&) -> Status {
                                          if (number == 0) closed.get_future().wait();
                                          return {};
                                        }}});
  EXPECT_EQ(reasons, (std::vector{reasons::kGroupClosed, reasons::kPeerLost}));
}

TEST(Overlap, AStepThatCannotBeginEndsTheMeetingsToo) {
  testing::TemporaryFolder folder;
  const Model model = Open(testing::WriteTinyModel(folder.path()));
  FileSource source(model.file);
  const ShardPlan plan{.ranks = {{{0, 8}, 0, 2}, {{8, 16}, 0, 2}}, .kv_blocks = 4, .reasons = {}};
  const auto links = MakeLocalGroup(2), stages = MakeLocalGroup(2);
  for (auto* link : {links[1].get(), stages[1].get()}) link->SetDeadline(Deadline::After(std::chrono::minutes(1)));
  const auto executor = Executor::Load(model.spec, source, plan, *links[0], {.pipeline = {.group = stages[0].get()}});
  ASSERT_TRUE(executor);
  const std::vector<TokenId> tokens(40, 7);
  ASSERT_FALSE((*executor)->Forward({tokens, {}, {}, true}));
  EXPECT_EQ(links[1]->Barrier().error().reason, reasons::kPeerLost);
  EXPECT_EQ(stages[1]->Barrier().error().reason, reasons::kPeerLost);
}

}  // namespace
}  // namespace shoal
