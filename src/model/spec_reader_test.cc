// Each bad file is a good one with one thing wrong, and must give exactly its reason, with the key or tensor named
// (research catalogue 3a, G21-G27, G29).
#include "model/spec_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "core/reasons.h"
#include "model/arch_traits.h"
#include "model/gguf.h"
#include "model/gguf_writer.h"
#include "tests/support/shared.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

// A model file that tests change before it is written.
struct Draft {
  std::string arch = "llama";
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> floats;
  std::map<std::string, std::string> strings;
  std::map<std::string, std::vector<int32_t>> arrays;
  std::map<std::string, std::vector<int64_t>> tensors;
  std::map<std::string, uint32_t> types;  // of tensors that are not f32
  int tokens = 40;

  static Draft Llama(const std::string& arch = "llama") {
    Draft d;
    d.arch = arch;
    d.ints = {{"block_count", 2},          {"context_length", 128},     {"embedding_length", 64},
              {"feed_forward_length", 96}, {"attention.head_count", 4}, {"attention.head_count_kv", 2}};
    d.floats = {{"attention.layer_norm_rms_epsilon", 1e-5}};
    d.tensors = {{"token_embd.weight", {64, 40}}, {"output_norm.weight", {64}}, {"output.weight", {64, 40}}};
    for (const std::string blk : {"blk.0.", "blk.1."}) {
      d.tensors[blk + "attn_norm.weight"] = d.tensors[blk + "ffn_norm.weight"] = {64};
      d.tensors[blk + "attn_q.weight"] = d.tensors[blk + "attn_output.weight"] = {64, 64};
      d.tensors[blk + "attn_k.weight"] = d.tensors[blk + "attn_v.weight"] = {64, 32};
      d.tensors[blk + "ffn_gate.weight"] = d.tensors[blk + "ffn_up.weight"] = {64, 96};
      d.tensors[blk + "ffn_down.weight"] = {96, 64};
    }
    return d;
  }

  std::string Build() const {
    GgufWriter writer;
    writer.SetString("general.architecture", arch);
    for (const auto& [key, value] : ints) writer.SetU32(arch + "." + key, static_cast<uint32_t>(value));
    for (const auto& [key, value] : floats) writer.SetF32(arch + "." + key, static_cast<float>(value));
    for (const auto& [key, value] : strings) writer.SetString(arch + "." + key, value);
    for (const auto& [key, value] : arrays) writer.SetInts(arch + "." + key, value);
    std::vector<std::string> vocabulary;
    for (int i = 0; i < tokens; ++i) vocabulary.push_back("t" + std::to_string(i));
    if (tokens > 0) writer.SetStrings("tokenizer.ggml.tokens", vocabulary);
    for (const auto& [name, dims] : tensors) {
      int64_t values = 1;
      for (const int64_t dim : dims) values *= dim;
      const auto type = types.find(name);
      if (type == types.end()) {
        writer.AddRaw(name, 0, dims, std::string(static_cast<size_t>(values) * 4, '\0'));
      } else {
        writer.AddRaw(name, type->second, dims, std::string(static_cast<size_t>(values) / 32 * 34, '\0'));  // q8_0
      }
    }
    return writer.Build();
  }

  Result<ModelSpec> Read() const {
    const testing::TemporaryFolder folder;
    const auto path = folder.path() / "model.gguf";
    testing::WriteFile(path, Build());
    SHOAL_ASSIGN(const auto file, GgufFile::Open(path));
    return ReadModelSpec(*file);
  }
};

void ExpectFails(const Draft& draft, Reason reason, const std::string& names) {
  const auto spec = draft.Read();
  ASSERT_FALSE(spec.has_value()) << names;
  EXPECT_EQ(spec.error().reason.name(), reason.name()) << spec.error().message;
  EXPECT_THAT(spec.error().message, HasSubstr(names));
}

TEST(SpecReader, ReadsAPlainModel) {
  const auto spec = Draft::Llama().Read();
  ASSERT_TRUE(spec.has_value()) << ToString(spec.error());
  EXPECT_EQ(spec->n_layers, 2);
  EXPECT_EQ(spec->n_vocab, 40);
  EXPECT_EQ(spec->head_dim_k, 16);
  EXPECT_EQ(spec->layers[1].kv_heads, 2);
  EXPECT_EQ(spec->layers[1].n_ff, 96);
  EXPECT_EQ(spec->rope.kind, RopeKind::kPairs);
  EXPECT_EQ(spec->rope.dims, 16);
  EXPECT_FALSE(spec->tied_output);
  EXPECT_FLOAT_EQ(spec->attention_scale, 0.25f);
  EXPECT_EQ(MaxUsefulRanks(*spec), 3);  // 96 FFN columns are three blocks
}

TEST(SpecReader, TiesTheOutputOnlyWhereTheArchitectureMay) {
  auto draft = Draft::Llama();
  draft.tensors.erase("output.weight");
  const auto spec = draft.Read();
  ASSERT_TRUE(spec.has_value()) << ToString(spec.error());
  EXPECT_TRUE(spec->tied_output);
  EXPECT_EQ(spec->output.weight.tensor, spec->embedding.tensor);
  auto orion = Draft::Llama("internlm2");
  orion.tensors.erase("output.weight");
  ExpectFails(orion, reasons::kModelCorrupt, "output.weight");
}

TEST(SpecReader, LayersHaveALimit) {
  for (const int64_t layers : {int64_t{0}, int64_t{513}, int64_t{UINT32_MAX}}) {
    auto draft = Draft::Llama();
    draft.ints["block_count"] = layers;
    ExpectFails(draft, reasons::kUnsupportedModel, "llama.block_count");
  }
  auto draft = Draft::Llama();
  draft.ints["block_count"] = 3;
  ExpectFails(draft, reasons::kModelCorrupt, "blk.2.");
}

TEST(SpecReader, HeadsMustDivide) {
  const auto with = [](const char* key, int64_t value) {
    auto draft = Draft::Llama();
    draft.ints[key] = value;
    return draft;
  };
  ExpectFails(with("attention.head_count", 0), reasons::kModelCorrupt, "llama.attention.head_count");
  ExpectFails(with("attention.head_count", 6), reasons::kModelCorrupt, "llama.attention.head_count");
  ExpectFails(with("attention.head_count_kv", 0), reasons::kModelCorrupt, "llama.attention.head_count_kv");
  ExpectFails(with("attention.head_count_kv", 3), reasons::kModelCorrupt, "llama.attention.head_count_kv");
  ExpectFails(with("attention.head_count_kv", 8), reasons::kModelCorrupt, "llama.attention.head_count_kv");
  auto draft = Draft::Llama();
  draft.ints.erase("attention.head_count_kv");
  draft.arrays["attention.head_count_kv"] = {2};
  ExpectFails(draft, reasons::kModelCorrupt, "llama.attention.head_count_kv");
  draft.arrays["attention.head_count_kv"] = {2, 2};
  EXPECT_TRUE(draft.Read().has_value());
}

TEST(SpecReader, VocabularyEmbeddingAndOutputMustAgree) {
  auto draft = Draft::Llama();
  draft.tokens = 39;
  ExpectFails(draft, reasons::kModelCorrupt, "token_embd.weight");
  draft = Draft::Llama();
  draft.tensors["output.weight"] = {64, 41};
  ExpectFails(draft, reasons::kModelCorrupt, "output.weight");
  draft = Draft::Llama();
  draft.tensors.erase("token_embd.weight");
  ExpectFails(draft, reasons::kModelCorrupt, "token_embd.weight");
}

TEST(SpecReader, NumbersMustMakeSense) {
  for (const int64_t context : {int64_t{0}, int64_t{1} << 31}) {
    auto draft = Draft::Llama();
    draft.ints["context_length"] = context;
    ExpectFails(draft, reasons::kModelCorrupt, "llama.context_length");
  }
  for (const double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    auto draft = Draft::Llama();
    draft.floats["attention.layer_norm_rms_epsilon"] = bad;
    ExpectFails(draft, reasons::kModelCorrupt, "llama.attention.layer_norm_rms_epsilon");
    draft = Draft::Llama();
    draft.floats["rope.freq_base"] = bad;
    ExpectFails(draft, reasons::kModelCorrupt, "llama.rope.freq_base");
  }
  auto draft = Draft::Llama();
  draft.ints["rope.dimension_count"] = 18;
  ExpectFails(draft, reasons::kModelCorrupt, "llama.rope.dimension_count");
  draft.ints["rope.dimension_count"] = 7;
  ExpectFails(draft, reasons::kModelCorrupt, "llama.rope.dimension_count");
}

TEST(SpecReader, RequiredKeysAreNamed) {
  for (const char* key :
       {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"}) {
    auto draft = Draft::Llama();
    draft.ints.erase(key);
    ExpectFails(draft, reasons::kModelCorrupt, key);
  }
  auto draft = Draft::Llama();
  draft.floats.clear();
  ExpectFails(draft, reasons::kModelCorrupt, "layer_norm_rms_epsilon");
}

Draft Mixtral() {
  auto draft = Draft::Llama();
  draft.ints["expert_count"] = 4;
  draft.ints["expert_used_count"] = 2;
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    for (const char* name : {"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}) draft.tensors.erase(blk + name);
    draft.tensors[blk + "ffn_gate_inp.weight"] = {64, 4};
    draft.tensors[blk + "ffn_gate_exps.weight"] = draft.tensors[blk + "ffn_up_exps.weight"] = {64, 96, 4};
    draft.tensors[blk + "ffn_down_exps.weight"] = {96, 64, 4};
  }
  return draft;
}

TEST(SpecReader, ExpertCountsMustAgreeWithTheTensors) {
  const auto good = Mixtral().Read();
  ASSERT_TRUE(good.has_value()) << ToString(good.error());
  EXPECT_EQ(good->n_ff_expert, 96);
  auto draft = Mixtral();
  draft.ints["expert_count"] = 0;
  draft.ints["expert_used_count"] = 0;
  ExpectFails(draft, reasons::kModelCorrupt, "llama.expert_count");
  draft = Mixtral();
  draft.ints["expert_used_count"] = 5;
  ExpectFails(draft, reasons::kModelCorrupt, "llama.expert_used_count");
  draft = Mixtral();
  draft.ints["expert_used_count"] = 0;
  ExpectFails(draft, reasons::kModelCorrupt, "llama.expert_used_count");
  draft = Mixtral();
  draft.ints["expert_count"] = 513;
  ExpectFails(draft, reasons::kUnsupportedModel, "llama.expert_count");
  draft = Mixtral();
  draft.tensors["blk.1.ffn_down_exps.weight"] = {96, 64, 3};
  ExpectFails(draft, reasons::kModelCorrupt, "blk.1.ffn_down_exps.weight");
}

TEST(SpecReader, UnknownArchitecturesAreRefusedByAShortName) {
  auto draft = Draft::Llama("perceptron");
  ExpectFails(draft, reasons::kUnsupportedArch, "perceptron");
  draft = Draft::Llama(std::string(60000, 'x'));  // keys, which carry the name, have a limit of their own
  const auto spec = draft.Read();
  ASSERT_FALSE(spec.has_value());
  EXPECT_EQ(spec.error().reason.name(), reasons::kUnsupportedArch.name());
  EXPECT_LT(spec.error().message.size(), 400u);
}

TEST(SpecReader, TensorsAreCheckedByRole) {
  auto draft = Draft::Llama();
  draft.tensors.erase("blk.1.attn_v.weight");
  ExpectFails(draft, reasons::kModelCorrupt, "blk.1.attn_v.weight");
  draft = Draft::Llama();
  draft.tensors["blk.0.ffn_down.weight"] = {64, 96};
  ExpectFails(draft, reasons::kModelCorrupt, "blk.0.ffn_down.weight");
  draft = Draft::Llama();
  draft.types["blk.0.attn_norm.weight"] = 8;
  ExpectFails(draft, reasons::kUnsupportedType, "blk.0.attn_norm.weight");
  draft = Draft::Llama();
  draft.types["blk.0.attn_q.weight"] = 8;
  EXPECT_TRUE(draft.Read().has_value());
}

TEST(SpecReader, OtherTensorsAndKeysDoNotMatter) {
  auto draft = Draft::Llama();
  draft.tensors["blk.0.mystery.weight"] = {32};
  draft.ints["mystery"] = 3;
  EXPECT_TRUE(draft.Read().has_value());
}

TEST(SpecReader, RopeScaling) {
  auto draft = Draft::Llama();
  draft.strings["rope.scaling.type"] = "linear";
  draft.floats["rope.scaling.factor"] = 4;
  auto spec = draft.Read();
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(spec->rope.frequency_scale, 0.25f);
  draft.strings["rope.scaling.type"] = "yarn";
  draft.ints["rope.scaling.original_context_length"] = 32;
  spec = draft.Read();
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(spec->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(spec->rope.original_context, 32);
  EXPECT_FLOAT_EQ(spec->rope.magnitude, 1 + 0.1f * std::log(4.0f));
  draft.strings["rope.scaling.type"] = "spiral";
  ExpectFails(draft, reasons::kUnsupportedModel, "spiral");
  draft = Draft::Llama();
  draft.tensors["rope_freqs.weight"] = {8};
  spec = draft.Read();
  ASSERT_TRUE(spec.has_value());
  EXPECT_TRUE(static_cast<bool>(spec->rope.factors));
}

TEST(SpecReader, FusedTensorsAreSplitByRows) {
  auto draft = Draft::Llama("phi3");
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    for (const char* name : {"attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight"})
      draft.tensors.erase(blk + name);
    draft.tensors[blk + "attn_qkv.weight"] = {64, 128};
    draft.tensors[blk + "ffn_up.weight"] = {64, 192};
  }
  const auto spec = draft.Read();
  ASSERT_TRUE(spec.has_value()) << ToString(spec.error());
  const auto& layer = spec->layers[1];
  EXPECT_EQ(layer.q.weight.tensor, layer.v.weight.tensor);
  EXPECT_EQ(layer.k.weight.first_row, 64);
  EXPECT_EQ(layer.v.weight.first_row, 96);
  EXPECT_EQ(layer.v.weight.rows, 32);
  EXPECT_EQ(layer.gate.weight.first_row, 0);
  EXPECT_EQ(layer.up.weight.first_row, 96);
}

TEST(ArchTraits, NamesAreDistinct) {
  EXPECT_NE(FindArch("llama"), nullptr);
  EXPECT_NE(FindArch("gemma3"), nullptr);
  EXPECT_EQ(FindArch("gemma30"), nullptr);
  EXPECT_EQ(FindArch(""), nullptr);
}

}  // namespace
}  // namespace shoal
