#include "tests/golden/golden_support.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "base/check.h"
#include "compute/kernels/linear.h"

namespace shoal::testing {

namespace {

std::vector<GoldenCase> CasesOf(const nlohmann::json& entries) {
  std::vector<GoldenCase> cases;
  for (const auto& entry : entries) {
    GoldenCase one;
    one.prompt = entry.value("prompt", "");
    one.prompt_ids = entry.at("prompt_ids").get<std::vector<TokenId>>();
    one.tokens = entry.at("tokens").get<std::vector<TokenId>>();
    for (const auto& step : entry.at("steps")) {
      GoldenStep out;
      out.id = step.at("id").get<TokenId>();
      for (const auto& pair : step.at("top")) out.top.emplace_back(pair.at(0).get<TokenId>(), pair.at(1).get<double>());
      one.steps.push_back(std::move(out));
    }
    cases.push_back(std::move(one));
  }
  return cases;
}

}  // namespace

std::vector<GoldenCase> ReadGolden(const std::filesystem::path& path) {
  std::ifstream in(path);
  return CasesOf(nlohmann::json::parse(in).at("cases"));
}

std::map<std::string, std::vector<GoldenCase>> ReadRecorded(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::map<std::string, std::vector<GoldenCase>> models;
  const auto json = nlohmann::json::parse(in);
  for (const auto& [name, entry] : json.at("models").items()) models[name] = CasesOf(entry.at("cases"));
  return models;
}

GoldenModel OpenModel(const std::filesystem::path& path) {
  GoldenModel model;
  auto file = GgufFile::Open(path);
  if (!file) {
    ADD_FAILURE() << ToString(file.error());
    return model;
  }
  auto spec = ReadModelSpec(**file);
  if (!spec) {
    ADD_FAILURE() << ToString(spec.error());
    return model;
  }
  return {*file, *std::move(spec)};
}

namespace {

template <class F>
void EachTensor(ModelSpec& spec, F&& f) {
  const auto linear = [&](LinearRef& ref) { f(ref.weight), f(ref.bias); };
  const auto norm = [&](NormRef& ref) { f(ref.weight), f(ref.bias); };
  f(spec.embedding), f(spec.positions), f(spec.rope.factors), f(spec.local_rope.factors);
  norm(spec.embedding_norm), norm(spec.final_norm), linear(spec.output);
  for (auto& layer : spec.layers) {
    for (auto* ref : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down, &layer.shared_gate,
                      &layer.shared_up, &layer.shared_down})
      linear(*ref);
    for (auto* ref : {&layer.attention_norm, &layer.q_norm, &layer.k_norm, &layer.attention_post_norm, &layer.ffn_norm,
                      &layer.ffn_post_norm})
      norm(*ref);
    for (auto* ref : {&layer.router, &layer.gate_experts, &layer.up_experts, &layer.down_experts, &layer.shared_router})
      f(*ref);
  }
}

}  // namespace

WidenedSource::WidenedSource(const GoldenModel& model) : spec_(model.spec) {
  EachTensor(spec_, [&](TensorRef& ref) {
    if (!ref) return;
    const auto tensor = static_cast<uint32_t>(ref.tensor);
    const TensorInfo& info = model.file->tensors()[tensor];
    auto& wide = tensors_[tensor];
    if (wide.empty()) {
      wide.resize(static_cast<size_t>(info.columns() * info.rows()) * sizeof(float));
      std::vector<std::byte> data(info.bytes);
      SHOAL_CHECK(model.file->Read({tensor, 0, info.bytes, 0, 1}, data).has_value());
      for (int64_t r = 0; r < info.rows(); ++r)
        kernels::Dequantize(static_cast<kernels::WeightType>(info.type),
                            data.data() + static_cast<uint64_t>(r) * info.row_bytes(), info.columns(),
                            reinterpret_cast<float*>(wide.data()) + r * info.columns());
    }
    ref.type = 0;
    ref.row_bytes = static_cast<uint64_t>(info.columns()) * sizeof(float);
  });
}

Status WidenedSource::Read(const TensorRange& range, std::span<std::byte> out) {
  const auto& data = tensors_.at(range.tensor);
  for (uint64_t i = 0; i < range.count; ++i)
    std::memcpy(out.data() + i * range.length, data.data() + range.offset + i * range.stride, range.length);
  return {};
}

template <class F>
void GoldenGroup::OnRanks(F&& f) {
  std::vector<std::thread> threads;
  for (int rank = 1; rank < ranks_; ++rank) threads.emplace_back([&f, rank] { f(rank); });
  f(0);
  for (auto& thread : threads) thread.join();
}

GoldenGroup::GoldenGroup(const ModelSpec& spec, TensorSource& source, std::vector<SliceRun> runs, int threads,
                         int sequences, KvType kv_type)
    : ranks_(static_cast<int>(runs.size())),
      vocabulary_(spec.n_vocab),
      blocks_each_((spec.context_length + limits::kBlockTokens - 1) / limits::kBlockTokens),
      links_(MakeLocalGroup(ranks_)),
      length_(static_cast<size_t>(sequences), 0) {
  ShardPlan plan;
  for (const auto& run : runs) plan.ranks.push_back({run, 0, spec.n_layers});
  plan.kv_blocks = blocks_each_ * sequences;
  plan.kv_type = kv_type;
  // Blocks of all sequences, shuffled: a result must not depend on where they lie.
  std::vector<BlockId> pool(static_cast<size_t>(plan.kv_blocks));
  for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<BlockId>(i);
  std::ranges::shuffle(pool, std::mt19937(static_cast<unsigned>(ranks_ * 100 + threads)));
  for (int s = 0; s < sequences; ++s)
    blocks_.emplace_back(pool.begin() + s * blocks_each_, pool.begin() + (s + 1) * blocks_each_);
  for (auto& link : links_) link->SetDeadline(Deadline::After(std::chrono::minutes(5)));
  std::vector<std::unique_ptr<Executor>> loaded(runs.size());
  OnRanks([&](int rank) {
    const auto r = static_cast<size_t>(rank);
    auto executor = Executor::Load(spec, source, plan, *links_[r], {.threads = threads});
    if (!executor) {
      ADD_FAILURE() << "rank " << rank << ": " << ToString(executor.error());
    } else {
      loaded[r] = *std::move(executor);
    }
  });
  for (const auto& executor : loaded)
    if (executor == nullptr) return;
  executors_ = std::move(loaded);
}

std::vector<std::vector<float>> GoldenGroup::Step(const std::vector<Chunk>& chunks) {
  std::vector<TokenId> tokens;
  std::vector<kernels::Segment> segments;
  std::vector<int32_t> wanted;
  for (const auto& chunk : chunks) {
    const auto s = static_cast<size_t>(chunk.sequence);
    const auto count = static_cast<int>(chunk.tokens.size());
    segments.push_back({static_cast<int>(tokens.size()), count, length_[s], blocks_[s]});
    tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    length_[s] += count;
    wanted.push_back(static_cast<int32_t>(tokens.size()) - 1);
  }
  std::vector<std::vector<float>> out(chunks.size());
  OnRanks([&](int rank) {
    auto logits = executors_[static_cast<size_t>(rank)]->Forward({tokens, segments, wanted});
    if (!logits) {
      ADD_FAILURE() << "rank " << rank << ": " << ToString(logits.error());
      return;
    }
    if (rank != 0) return;
    for (size_t i = 0; i < out.size(); ++i)
      out[i].assign(logits->begin() + static_cast<int64_t>(i) * vocabulary_,
                    logits->begin() + static_cast<int64_t>(i + 1) * vocabulary_);
  });
  return out;
}

std::vector<float> GoldenGroup::Feed(int sequence, std::span<const TokenId> tokens, int chunk) {
  const auto at_once = static_cast<size_t>(chunk > 0 ? chunk : limits::kMaxStepRows);
  std::vector<float> logits;
  for (size_t at = 0; at < tokens.size(); at += at_once) {
    const auto part = tokens.subspan(at, std::min(at_once, tokens.size() - at));
    logits = Step({{sequence, {part.begin(), part.end()}}})[0];
  }
  return logits;
}

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float v : logits) sum += std::exp(v - largest);
  std::vector<double> out;
  for (const float v : logits) out.push_back(v - largest - std::log(sum));
  return out;
}

TokenId Greedy(const std::vector<float>& logits) {
  return static_cast<TokenId>(std::ranges::max_element(logits) - logits.begin());
}

}  // namespace shoal::testing
