#include "model/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <format>
#include <vector>

#include "base/check.h"
#include "core/reasons.h"
#include "model/gguf_writer.h"

namespace shoal {
namespace {

constexpr uint32_t kQ8_0 = 8;
constexpr int kBlock = 32;

// SplitMix64 (Steele et al. 2014). Only exact float operations follow it, so the bytes are the same
// everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  float Symmetric() {
    return static_cast<float>(static_cast<int32_t>(Next() >> 40) - (1 << 23)) * 0x1p-23f;
  }  // [-1, 1)

 private:
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

uint16_t HalfBits(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}

// Blocks of 32 values: an f16 scale, then 32 int8.
std::string QuantiseQ8(const std::vector<float>& values) {
  std::string out;
  out.reserve(values.size() / kBlock * 34);
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    float largest = 0;
    for (size_t i = begin; i < begin + kBlock; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float scale = largest / 127.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    const uint16_t bits = HalfBits(scale);
    out.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
    for (size_t i = begin; i < begin + kBlock; ++i) {
      out.push_back(static_cast<char>(static_cast<int8_t>(std::lround(values[i] * inverse))));
    }
  }
  return out;
}

class TinyModel {
 public:
  explicit TinyModel(const TinyModelOptions& options) : options_(options), random_(options.seed) {}

  std::string Make() {
    Hyperparameters();
    Tokenizer();
    const int64_t dim = options_.dim;
    const int64_t head = dim / options_.heads;
    const int64_t kv = head * options_.kv_heads;
    Matrix("token_embd.weight", dim, options_.vocabulary, 1.0f);
    for (int i = 0; i < options_.layers; ++i) {
      const std::string block = std::format("blk.{}.", i);
      Norm(block + "attn_norm.weight");
      Matrix(block + "attn_q.weight", dim, dim);
      Matrix(block + "attn_k.weight", dim, kv);
      Matrix(block + "attn_v.weight", dim, kv);
      Matrix(block + "attn_output.weight", dim, dim);
      Norm(block + "ffn_norm.weight");
      Matrix(block + "ffn_gate.weight", dim, options_.ffn);
      Matrix(block + "ffn_up.weight", dim, options_.ffn);
      Matrix(block + "ffn_down.weight", options_.ffn, dim);
    }
    Norm("output_norm.weight");
    if (!options_.tied) Matrix("output.weight", dim, options_.vocabulary);
    return writer_.Build();
  }

 private:
  void Hyperparameters() {
    const auto key = [&](const char* name) { return options_.arch + "." + name; };
    const auto number = [&](const char* name, int value) { writer_.SetU32(key(name), static_cast<uint32_t>(value)); };
    writer_.SetString("general.architecture", options_.arch);
    writer_.SetString("general.name", options_.name);
    writer_.SetU32("general.file_type", options_.q8_0 ? 7 : 0);
    number("context_length", options_.context);
    number("embedding_length", options_.dim);
    number("block_count", options_.layers);
    number("feed_forward_length", options_.ffn);
    number("attention.head_count", options_.heads);
    number("attention.head_count_kv", options_.kv_heads);
    number("rope.dimension_count", options_.dim / options_.heads);
    number("vocab_size", options_.vocabulary);
    writer_.SetF32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
    writer_.SetF32(key("rope.freq_base"), 10000.0f);
  }

  // Ids as in the Llama vocabulary: unknown, begin, end, the 256 bytes, then pieces; those up to
  // id 299 can be reached by merges, the rest only fill up a larger vocabulary.
  void Tokenizer() {
    enum Kind { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> kinds = {kUnknown, kControl, kControl};
    std::vector<float> scores = {0, 0, 0};
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(std::format("<0x{:02X}>", byte));
      kinds.push_back(kByte);
      scores.push_back(0);
    }
    const auto piece = [&](std::string text) {
      tokens.push_back(std::move(text));
      kinds.push_back(kNormal);
      scores.push_back(-static_cast<float>(tokens.size() - 259));
    };
    for (const char* text : {"▁t", "he", "▁the", "in", "▁a", "er", "on", "▁an", "▁and", "▁o", "▁s", "re", "▁th", "at"})
      piece(text);
    piece("▁");
    for (char letter = 'a'; letter <= 'z'; ++letter) piece(std::string(1, letter));
    for (int i = 0; static_cast<int>(tokens.size()) < options_.vocabulary; ++i) piece(std::format("▁extra{}", i));
    SHOAL_CHECK(static_cast<int>(tokens.size()) == options_.vocabulary);
    writer_.SetString("tokenizer.ggml.model", "llama");
    writer_.SetStrings("tokenizer.ggml.tokens", tokens);
    writer_.SetFloats("tokenizer.ggml.scores", scores);
    writer_.SetInts("tokenizer.ggml.token_type", kinds);
    writer_.SetU32("tokenizer.ggml.bos_token_id", 1);
    writer_.SetU32("tokenizer.ggml.eos_token_id", 2);
    writer_.SetU32("tokenizer.ggml.unknown_token_id", 0);
    writer_.SetBool("tokenizer.ggml.add_bos_token", true);
    writer_.SetBool("tokenizer.ggml.add_eos_token", false);
    writer_.SetBool("tokenizer.ggml.add_space_prefix", true);
  }

  // Rows of `columns` values with a variance of one over the row's length (or `spread` squared / 3), so
  // activations keep their size.
  void Matrix(const std::string& name, int64_t columns, int64_t rows, float spread = 0) {
    if (spread == 0) spread = std::sqrt(3.0f / static_cast<float>(columns));
    std::vector<float> values(static_cast<size_t>(columns * rows));
    for (float& value : values) value = random_.Symmetric() * spread;
    if (options_.q8_0 && columns % kBlock == 0) {
      writer_.AddRaw(name, kQ8_0, {columns, rows}, QuantiseQ8(values));
    } else {
      writer_.AddF32(name, {columns, rows}, values);
    }
  }

  void Norm(const std::string& name) {
    std::vector<float> values(static_cast<size_t>(options_.dim));
    for (float& value : values) value = 1.0f + 0.125f * random_.Symmetric();
    writer_.AddF32(name, {options_.dim}, values);
  }

  const TinyModelOptions& options_;
  Random random_;
  GgufWriter writer_;
};

}  // namespace

Status CheckTinyModel(const TinyModelOptions& options) {
  const auto bad = [](const char* what) { return Fail(Code::kInvalidArgument, reasons::kInvalidValue, what); };
  for (const int value : {options.dim, options.layers, options.heads, options.kv_heads, options.ffn, options.context}) {
    if (value < 1 || value > 1 << 20) return bad("sizes must be from 1 to 1048576");
  }
  if (options.layers > 512) return bad("at most 512 layers");
  if (options.dim % options.heads != 0) return bad("dim must be a multiple of heads");
  if (options.dim / options.heads % 2 != 0) return bad("dim / heads must be even (rotary positions turn pairs)");
  if (options.heads % options.kv_heads != 0) return bad("heads must be a multiple of kv-heads");
  if (options.vocabulary < 300 || options.vocabulary > 1 << 20)
    return bad("the vocabulary must be from 300 to 1048576 tokens");
  if (options.arch.empty() || options.arch.size() > 64)
    return bad("the architecture's name must have 1 to 64 characters");
  return {};
}

std::string MakeTinyModel(const TinyModelOptions& options) {
  SHOAL_CHECK(CheckTinyModel(options).has_value());
  return TinyModel(options).Make();
}

}  // namespace shoal
