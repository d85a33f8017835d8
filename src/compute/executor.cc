#include "compute/executor.h"

#include <algorithm>
#include <cstring>
#include <format>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "comm/courier.h"
#include "compute/forward.h"
#include "compute/parts.h"
#include "compute/shard.h"
#include "compute/weights.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {
namespace {

std::unexpected<Error> BadBatch(const char* what) {
  return Fail(Code::kInternal, reasons::kInternal, std::format("a step cannot be computed: {}", what));
}

// Logits of one meeting, unless one row has more: far below what a meeting may move, many times what a decode step brings.
constexpr size_t kGatherBytes = size_t{16} << 20;
static_assert(kGatherBytes <= limits::kMaxFrameBytes &&
              uint64_t{limits::kMaxVocabulary} * sizeof(float) <= limits::kMaxFrameBytes);

static_assert(kMostParts <= Courier::kMost);

class LocalExecutor final : public Executor {
 public:
  LocalExecutor(const ModelSpec& spec, const ShardPlan& plan, Collective& collective, const ExecutorOptions& options)
      : spec_(spec),
        plan_(plan),
        collective_(collective),
        pipeline_(options.pipeline),
        gather_bytes_(std::min(kGatherBytes, options.meeting_bytes)),
        pool_(options.threads) {}

  Status Load(TensorSource& source, const ExecutorOptions& options) {
    const RankShare& share = plan_.ranks[static_cast<size_t>(collective_.rank())];
    if (!CheckedMul<uint64_t>(KvBlockBytes(spec_, share, plan_.kv_type), static_cast<uint64_t>(plan_.kv_blocks)))
      return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                  std::format("{} KV blocks are more than can be", plan_.kv_blocks));
    SHOAL_ASSIGN(auto weights, LoadWeights(spec_, source, share, options.threads));
    shard_ = std::make_unique<Shard>(spec_, std::move(weights), plan_, collective_, options);
    passes_.push_back(std::make_unique<shoal::Forward>(*shard_, pool_));
    return {};
  }

  Result<std::span<const float>> Forward(const RowBatch& batch) override {
    auto logits = Compute(batch);
    if (!logits && batch.overlap) GiveUp();
    return logits;
  }

  ThreadPool& threads() override { return pool_; }
  StepWaits waits() const override { return waits_; }
  size_t weight_bytes() const override { return shard_->weights.bytes; }
  size_t kv_bytes() const override { return shard_->kv_bytes; }

 private:
  Result<std::span<const float>> Compute(const RowBatch& batch) {
    SHOAL_RETURN_IF_ERROR(Check(batch));
    waits_ = {};
    try {
      // A rank that shares its layers with nobody has no sums to wait for: parts would only have it read its weights more often.
      return InParts(batch) && plan_.size() > 1 ? ForwardInParts(batch) : ForwardWhole(batch);
    } catch (const std::bad_alloc&) {
      return Fail(Code::kResourceExhausted, reasons::kOutOfMemory, "not enough memory for this step");
    }
  }

  // Ends the meetings of this step, wherever it is: the other ranks, and the courier, may wait in one that this rank never comes to.
  void GiveUp() {
    collective_.Close();
    if (pipeline_.group != nullptr) pipeline_.group->Close();
  }

  Status Check(const RowBatch& batch) const {
    const auto rows = static_cast<int>(batch.tokens.size());
    if (rows < 1 || rows > limits::kMaxStepRows) return BadBatch("its number of rows is out of range");
    for (const TokenId token : batch.tokens)
      if (token < 0 || token >= spec_.n_vocab) return BadBatch("a token is not in the vocabulary");
    int next = 0;
    for (const auto& segment : batch.segments) {
      if (segment.first_row != next || segment.rows < 1 || segment.rows > rows - next || segment.first_position < 0)
        return BadBatch("its segments do not cover its rows");
      next += segment.rows;
      const int64_t end = int64_t{segment.first_position} + segment.rows;
      if (end > spec_.context_length) return BadBatch("a position is beyond the model's context");
      if (end > static_cast<int64_t>(segment.blocks.size()) * limits::kBlockTokens)
        return BadBatch("a block table is too short");
      for (const BlockId block : segment.blocks)
        if (block < 0 || block >= plan_.kv_blocks) return BadBatch("a block is not in the pool");
    }
    if (next != rows) return BadBatch("its segments do not cover its rows");
    int32_t after = -1;
    for (const int32_t row : batch.logit_rows) {
      if (row <= after || row >= rows) return BadBatch("its logit rows are not ascending rows");
      after = row;
    }
    return {};
  }

  Result<std::span<const float>> ForwardWhole(const RowBatch& batch) {
    shoal::Forward& pass = *passes_.front();
    pass.Begin(batch);
    Program& program = pass.program();
    SHOAL_RETURN_IF_ERROR(program.Run(pass.rows()));
    waits_ = program.waits();
    if (plan_.size() == 1) return pass.logits();
    SHOAL_RETURN_IF_ERROR(GatherLogits(pass.logits(), 0, batch.logit_rows.size()));
    return Gathered(batch.logit_rows.size());
  }

  Result<std::span<const float>> ForwardInParts(const RowBatch& batch) {
    const auto parts = CutInParts(batch);
    if (!courier_) courier_ = std::make_unique<Courier>();
    while (passes_.size() < parts.size()) passes_.push_back(std::make_unique<shoal::Forward>(*shard_, pool_));
    std::vector<Program::Part> programs;
    for (size_t i = 0; i < parts.size(); ++i) {
      passes_[i]->Begin(parts[i].batch());
      programs.push_back({&passes_[i]->program(), passes_[i]->rows()});
    }
    SHOAL_RETURN_IF_ERROR(Program::RunInTurns(programs, *courier_, [this] { GiveUp(); }));
    size_t gathered = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      waits_ += programs[i].program->waits();
      SHOAL_RETURN_IF_ERROR(GatherLogits(passes_[i]->logits(), gathered, parts[i].logit_rows.size()));
      gathered += parts[i].logit_rows.size();
    }
    return Gathered(gathered);
  }

  std::span<const float> Gathered(size_t rows) const {
    const bool root = pipeline_.last && collective_.rank() == 0;
    return {logits_.data(), root ? static_cast<size_t>(spec_.n_vocab) * rows : 0};
  }

  // To rows [first, first + rows) of the logits: rank 0 receives each rank's columns one after the other; with several rows they
  // have to be interleaved. Some rows a meeting: it moves a bounded number of bytes, and what lies here twice is bounded too.
  Status GatherLogits(std::span<const float> own, size_t first, size_t rows) {
    if (!pipeline_.last || rows == 0) return {};
    const Time start = Now();
    const auto vocabulary = static_cast<size_t>(spec_.n_vocab);
    const bool root = collective_.rank() == 0;
    const size_t at_once = std::clamp<size_t>(gather_bytes_ / (vocabulary * sizeof(float)), 1, rows);
    const size_t width = static_cast<size_t>(Columns(collective_.rank()));
    if (root && logits_.size() < vocabulary * (first + rows)) logits_.resize(vocabulary * (first + rows));
    if (root && at_once > 1 && gathered_.size() < vocabulary * at_once) gathered_.resize(vocabulary * at_once);
    std::vector<size_t> counts(static_cast<size_t>(plan_.size()));
    for (size_t begin = 0; begin < rows; begin += at_once) {
      const size_t now = std::min(at_once, rows - begin);
      for (int rank = 0; rank < plan_.size(); ++rank)
        counts[static_cast<size_t>(rank)] = static_cast<size_t>(Columns(rank)) * now * sizeof(float);
      float* const to = root ? logits_.data() + (first + begin) * vocabulary : nullptr;
      const std::span<float> all(now == 1 ? to : gathered_.data(), root ? vocabulary * now : 0);
      SHOAL_RETURN_IF_ERROR(collective_.Gather(0, std::as_bytes(own.subspan(begin * width, now * width)), counts,
                                               std::as_writable_bytes(all)));
      if (root && now > 1) Interleave(all.data(), now, to);
    }
    waits_.stage += Now() - start;
    return {};
  }

  int64_t Columns(int rank) const {
    return UnitsOf(plan_.ranks[static_cast<size_t>(rank)].slices, spec_.n_vocab).count();
  }

  void Interleave(const float* from, size_t rows, float* to) const {
    for (int rank = 0; rank < plan_.size(); ++rank) {
      const auto width = static_cast<size_t>(Columns(rank));
      for (size_t r = 0; r < rows && width > 0; ++r, from += width)
        std::memcpy(to + r * static_cast<size_t>(spec_.n_vocab), from, width * sizeof(float));
      to += width;
    }
  }

  const ModelSpec spec_;
  const ShardPlan plan_;
  Collective& collective_;
  const Pipeline pipeline_;
  const size_t gather_bytes_;
  ThreadPool pool_;
  std::unique_ptr<Shard> shard_;
  std::vector<std::unique_ptr<shoal::Forward>> passes_;  // the first one, and those of steps in parts
  std::unique_ptr<Courier> courier_;                     // of steps in parts; last, as its errands use the others
  std::vector<float> gathered_, logits_;
  StepWaits waits_;
};

}  // namespace

Result<std::unique_ptr<Executor>> Executor::Load(const ModelSpec& spec, TensorSource& source, const ShardPlan& plan,
                                                 Collective& collective, const ExecutorOptions& options) {
  SHOAL_CHECK(plan.size() == collective.size() && plan.kv_blocks >= 0 && options.meeting_bytes > 0);
  if (options.threads < 1 || options.threads > limits::kMaxThreads)
    return Fail(Code::kInvalidArgument, reasons::kInvalidValue,
                std::format("{} compute threads; 1 to {} are possible", options.threads, limits::kMaxThreads));
  try {
    auto executor = std::make_unique<LocalExecutor>(spec, plan, collective, options);
    SHOAL_RETURN_IF_ERROR(executor->Load(source, options));
    return executor;
  } catch (const std::bad_alloc&) {
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                std::format("not enough memory for this share of '{}' and {} KV blocks", spec.name, plan.kv_blocks));
  }
}

}  // namespace shoal
