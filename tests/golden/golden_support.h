// What: what the golden tests share: reading a reference file, and running a model on a group of ranks in this process.
// A GoldenGroup keeps the sequences' block tables; Feed gives one sequence some tokens.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/local.h"
#include "compute/executor.h"
#include "core/limits.h"
#include "core/model_spec.h"
#include "model/file_source.h"
#include "model/gguf.h"
#include "model/spec_reader.h"

namespace shoal::testing {

struct GoldenStep {
  TokenId id = 0;
  std::vector<std::pair<TokenId, double>> top;  // log-probabilities, the most likely first
};

struct GoldenCase {
  std::string prompt;
  std::vector<TokenId> prompt_ids;
  std::vector<TokenId> tokens;  // greedy
  // Log-probabilities of most of the tokens, in order: the reference reports none for a token that ends inside a
  // UTF-8 character, so there may be fewer steps than tokens.
  std::vector<GoldenStep> steps;
};

std::vector<GoldenCase> ReadGolden(const std::filesystem::path& path);
// A file with the cases of several models, by name.
std::map<std::string, std::vector<GoldenCase>> ReadRecorded(const std::filesystem::path& path);

struct GoldenModel {
  std::shared_ptr<const GgufFile> file;
  ModelSpec spec;
};
GoldenModel OpenModel(const std::filesystem::path& path);  // fails the test and returns an empty model when it cannot

// The same model with every matrix widened to f32, held in memory: what the quantised weights mean without rounding of
// activations.
class WidenedSource final : public TensorSource {
 public:
  WidenedSource(const GoldenModel& model);
  const ModelSpec& spec() const { return spec_; }
  Status Read(const TensorRange& range, std::span<std::byte> out) override;

 private:
  ModelSpec spec_;
  std::map<uint32_t, std::vector<std::byte>> tensors_;
};

// Rows of one sequence in a step.
struct Chunk {
  int sequence = 0;
  std::vector<TokenId> tokens;
};

class GoldenGroup {
 public:
  GoldenGroup(const ModelSpec& spec, TensorSource& source, std::vector<SliceRun> runs, int threads, int sequences,
              KvType kv_type = KvType::kF16);
  bool ok() const { return !executors_.empty(); }
  // One step. Returns the logits of the last row of each chunk, in order.
  std::vector<std::vector<float>> Step(const std::vector<Chunk>& chunks);
  // Feeds `tokens` to a sequence in chunks of `chunk` (0: as large as a step may be); the logits of the last row.
  std::vector<float> Feed(int sequence, std::span<const TokenId> tokens, int chunk = 0);
  Executor& executor(int rank) { return *executors_[static_cast<size_t>(rank)]; }

 private:
  // Runs f(rank) on a thread for each rank.
  template <class F>
  void OnRanks(F&& f);

  int ranks_;
  int vocabulary_;
  int blocks_each_;
  std::vector<std::unique_ptr<Collective>> links_;
  std::vector<std::unique_ptr<Executor>> executors_;
  std::vector<std::vector<BlockId>> blocks_;  // of each sequence, all from the start
  std::vector<int> length_;
};

std::vector<double> LogSoftmax(const std::vector<float>& logits);
TokenId Greedy(const std::vector<float>& logits);

}  // namespace shoal::testing
