#include "model/spec_reader.h"

#include <algorithm>
#include <cmath>
#include <format>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/arch_traits.h"
#include "model/gguf.h"
#include "model/printable.h"
#include "model/tensor_roles.h"

namespace shoal {
namespace {

class SpecReader {
 public:
  SpecReader(const GgufFile& file, const ArchTraits& traits) : file_(file), traits_(traits) {}

  Result<ModelSpec> Read() {
    spec_.arch = traits_.arch;
    SHOAL_ASSIGN(const auto name, file_.GetString("general.name"));
    spec_.name = std::string(name.value_or(std::string_view{}).substr(0, 256));
    SHOAL_RETURN_IF_ERROR(ReadSizes());
    SHOAL_RETURN_IF_ERROR(ReadHeads());
    SHOAL_RETURN_IF_ERROR(ReadWidths());
    SHOAL_RETURN_IF_ERROR(ReadNorm());
    SHOAL_RETURN_IF_ERROR(ReadRope());
    SHOAL_RETURN_IF_ERROR(ReadWindows());
    SHOAL_RETURN_IF_ERROR(ReadScales());
    SHOAL_RETURN_IF_ERROR(ReadVocabulary());
    SHOAL_RETURN_IF_ERROR(FindTensors(file_, traits_, longrope_, spec_));
    spec_.local_rope.factors = spec_.rope.factors;
    return std::move(spec_);
  }

 private:
  std::string Key(std::string_view key) const { return std::string(traits_.arch) + "." + std::string(key); }

  std::unexpected<Error> Corrupt(const std::string& what) const {
    return Fail(Code::kCorrupt, reasons::kModelCorrupt, file_.name() + ": " + what);
  }
  std::unexpected<Error> Unsupported(const std::string& what) const {
    return Fail(Code::kUnsupported, reasons::kUnsupportedModel, file_.name() + ": " + what);
  }

  // A number that must be there.
  Result<int64_t> Int(std::string_view key, int64_t low, int64_t high) const {
    SHOAL_ASSIGN(const auto value, file_.GetInt(Key(key), low, high));
    if (!value) return Corrupt(std::format("the key '{}' is missing", Key(key)));
    return *value;
  }
  Result<int64_t> IntOr(std::string_view key, int64_t low, int64_t high, int64_t otherwise) const {
    SHOAL_ASSIGN(const auto value, file_.GetInt(Key(key), low, high));
    return value.value_or(otherwise);
  }
  // The same for what fits an int (high below 2^31).
  Result<int> Small(std::string_view key, int low, int high) const {
    SHOAL_ASSIGN(const int64_t value, Int(key, low, high));
    return static_cast<int>(value);
  }
  Result<int> SmallOr(std::string_view key, int low, int high, int otherwise) const {
    SHOAL_ASSIGN(const int64_t value, IntOr(key, low, high, otherwise));
    return static_cast<int>(value);
  }
  Result<float> FloatOr(std::string_view key, float otherwise) const {
    SHOAL_ASSIGN(const auto value, file_.GetFloat(Key(key)));
    if (!value) return otherwise;
    if (std::abs(*value) > 1e30) return Corrupt(std::format("'{}' is {}, which is out of range", Key(key), *value));
    return static_cast<float>(*value);
  }
  Result<float> Positive(std::string_view key, float otherwise) const {
    SHOAL_ASSIGN(const float value, FloatOr(key, otherwise));
    if (!(value > 0)) return Corrupt(std::format("'{}' is {}, but must be above 0", Key(key), value));
    return value;
  }

  // One number for all layers, or an array with one for each; empty when there is no such key.
  Result<std::vector<int>> PerLayer(std::string_view key, int64_t low, int64_t high) const {
    const auto full = Key(key);
    const GgufValue* value = file_.Find(full);
    const auto layers = static_cast<size_t>(spec_.n_layers);
    if (value == nullptr) return std::vector<int>{};
    if (value->type != GgufType::kArray) {
      SHOAL_ASSIGN(const auto one, file_.GetInt(full, low, high));
      return std::vector<int>(layers, static_cast<int>(*one));
    }
    SHOAL_ASSIGN(const auto many, file_.GetInts(full, low, high));
    if (many->size() < layers)
      return Corrupt(std::format("'{}' has {} values for {} layers", full, many->size(), layers));
    return std::vector<int>(many->begin(), many->begin() + spec_.n_layers);
  }

  Status ReadSizes() {
    SHOAL_ASSIGN(const int64_t layers, Int("block_count", 0, UINT32_MAX));
    if (layers < 1 || layers > limits::kMaxLayers)
      return Unsupported(
          std::format("'{}' is {}, but 1 to {} layers are supported", Key("block_count"), layers, limits::kMaxLayers));
    spec_.n_layers = static_cast<int>(layers);
    spec_.layers.resize(static_cast<size_t>(layers));
    SHOAL_ASSIGN(spec_.n_embd, Small("embedding_length", 1, limits::kMaxWidth));
    SHOAL_ASSIGN(spec_.context_length, Small("context_length", 1, limits::kMaxContext));
    SHOAL_ASSIGN(const int64_t experts, IntOr("expert_count", 0, UINT32_MAX, 0));
    if (experts > limits::kMaxExperts)
      return Unsupported(std::format("'{}' is {}, but at most {} experts are supported", Key("expert_count"), experts,
                                     limits::kMaxExperts));
    SHOAL_ASSIGN(const int64_t used, IntOr("expert_used_count", 0, UINT32_MAX, 0));
    if (used > experts)
      return Corrupt(std::format("'{}' is {}, more than the {} experts", Key("expert_used_count"), used, experts));
    const bool has_experts = file_.FindTensor("blk.0.ffn_gate_inp.weight") != nullptr ||
                             file_.FindTensor("blk.0.ffn_down_exps.weight") != nullptr;
    if (experts == 0 && has_experts)
      return Corrupt(std::format("'{}' is 0, but there are tensors of experts", Key("expert_count")));
    if (experts > 0 && used == 0) return Corrupt(std::format("'{}' is 0 or missing", Key("expert_used_count")));
    if (experts > 0 && traits_.experts == Experts::kNone)
      return Unsupported(std::format("a {} model with experts is not known", traits_.arch));
    if (experts == 0 && traits_.experts == Experts::kRequired)
      return Corrupt(std::format("'{}' is 0 or missing", Key("expert_count")));
    spec_.n_experts = static_cast<int>(experts);
    spec_.n_experts_used = static_cast<int>(used);
    spec_.normalise_expert_weights = traits_.normalise_experts;
    return {};
  }

  Status ReadHeads() {
    SHOAL_ASSIGN(const auto heads, PerLayer("attention.head_count", 1, limits::kMaxHeads));
    if (heads.empty()) return Corrupt(std::format("the key '{}' is missing", Key("attention.head_count")));
    SHOAL_ASSIGN(auto kv_heads, PerLayer("attention.head_count_kv", 1, limits::kMaxHeads));
    if (kv_heads.empty()) kv_heads = heads;
    SHOAL_ASSIGN(const int64_t k_length, IntOr("attention.key_length", 1, limits::kMaxHeadDim, 0));
    SHOAL_ASSIGN(const int64_t v_length, IntOr("attention.value_length", 1, limits::kMaxHeadDim, 0));
    for (size_t i = 0; i < heads.size(); ++i) {
      auto& layer = spec_.layers[i];
      layer.heads = heads[i];
      layer.kv_heads = kv_heads[i];
      if (layer.kv_heads > layer.heads || layer.heads % layer.kv_heads != 0)
        return Corrupt(std::format("'{}' is {}, which does not divide the {} heads (layer {})",
                                   Key("attention.head_count_kv"), layer.kv_heads, layer.heads, i));
    }
    if ((k_length == 0 || v_length == 0) && spec_.n_embd % heads[0] != 0)
      return Corrupt(std::format("'{}' is {}, which does not divide '{}' = {}", Key("attention.head_count"), heads[0],
                                 Key("embedding_length"), spec_.n_embd));
    spec_.head_dim_k = static_cast<int>(k_length > 0 ? k_length : spec_.n_embd / heads[0]);
    spec_.head_dim_v = static_cast<int>(v_length > 0 ? v_length : spec_.n_embd / heads[0]);
    if (spec_.head_dim_k > limits::kMaxHeadDim || spec_.head_dim_v > limits::kMaxHeadDim)
      return Unsupported(
          std::format("heads of {} values; at most {} are supported", spec_.head_dim_k, limits::kMaxHeadDim));
    return {};
  }

  Status ReadWidths() {
    SHOAL_ASSIGN(const auto widths, PerLayer("feed_forward_length", 0, limits::kMaxWidth));
    const bool dense = spec_.n_experts == 0;
    for (size_t i = 0; i < spec_.layers.size(); ++i) {
      auto& layer = spec_.layers[i];
      layer.experts = !dense;
      layer.n_ff = dense && !widths.empty() ? widths[i] : 0;
      if (dense && layer.n_ff == 0)
        return Corrupt(std::format("'{}' is 0 or missing (layer {})", Key("feed_forward_length"), i));
    }
    if (dense) return {};
    const int64_t width = widths.empty() ? 0 : widths[0];
    int64_t expert = 0;
    if (traits_.expert_width_key) {
      SHOAL_ASSIGN(expert, IntOr("expert_feed_forward_length", 0, limits::kMaxWidth, 0));
      if (expert == 0) expert = width / spec_.n_experts_used;
    } else {
      expert = width;
    }
    if (expert == 0) return Corrupt(std::format("'{}' is 0 or missing", Key("expert_feed_forward_length")));
    spec_.n_ff_expert = static_cast<int>(expert);
    if (traits_.shared != SharedExpert::kNone) {
      SHOAL_ASSIGN(int64_t shared, IntOr("expert_shared_feed_forward_length", 0, limits::kMaxWidth, 0));
      if (shared == 0 && traits_.shared == SharedExpert::kGated) shared = width;
      spec_.n_ff_shared = static_cast<int>(shared);
      if (shared == 0 && traits_.shared == SharedExpert::kGated)
        return Corrupt(std::format("'{}' is 0 or missing", Key("expert_shared_feed_forward_length")));
    }
    return {};
  }

  Status ReadNorm() {
    spec_.norm = spec_.qk_norm_kind = traits_.norm;
    spec_.activation = traits_.activation;
    const std::string_view key =
        traits_.norm == NormKind::kRms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    if (file_.Find(Key(key)) == nullptr) return Corrupt(std::format("the key '{}' is missing", Key(key)));
    SHOAL_ASSIGN(spec_.norm_eps, Positive(key, 0));
    if (spec_.norm_eps > 1) return Corrupt(std::format("'{}' is {}, which is out of range", Key(key), spec_.norm_eps));
    spec_.parallel = traits_.parallel == Parallel::kYes;
    if (traits_.parallel == Parallel::kByKey) {
      SHOAL_ASSIGN(const auto parallel, file_.GetBool(Key("use_parallel_residual")));
      if (!parallel) return Corrupt(std::format("the key '{}' is missing", Key("use_parallel_residual")));
      spec_.parallel = *parallel;
    }
    return {};
  }

  Status ReadRope() {
    auto& rope = spec_.rope;
    rope.kind = traits_.rope;
    if (traits_.granite_scales) {  // this family's files switch the rotation off by this key
      SHOAL_ASSIGN(const auto on, file_.GetBool(Key("rope.scaling.finetuned")));
      if (!on.value_or(true)) rope.kind = RopeKind::kNone;
    }
    SHOAL_ASSIGN(rope.dims, SmallOr("rope.dimension_count", 0, limits::kMaxHeadDim, spec_.head_dim_k));
    SHOAL_ASSIGN(rope.base, Positive("rope.freq_base", 10000));
    if (rope.kind == RopeKind::kNone) return {};
    if (rope.dims == 0) rope.dims = spec_.head_dim_k;
    if (rope.dims % 2 != 0 || rope.dims > spec_.head_dim_k)
      return Corrupt(std::format("'{}' is {}, which must be even and at most a head's {} values",
                                 Key("rope.dimension_count"), rope.dims, spec_.head_dim_k));
    SHOAL_RETURN_IF_ERROR(ReadRopeScaling(rope));
    spec_.local_rope = rope;
    if (traits_.local_rope_unscaled) {
      auto& local = spec_.local_rope;
      local.frequency_scale = local.magnitude = 1;
      local.extrapolation = 0;
      local.scaling = RopeScaling::kNone;
    }
    if (traits_.window_period > 0) {
      const float base = traits_.local_rope_base > 0 ? traits_.local_rope_base : rope.base;
      SHOAL_ASSIGN(spec_.local_rope.base, Positive("rope.freq_base_swa", base));
    }
    return {};
  }

  Status ReadRopeScaling(RopeSpec& rope) {
    SHOAL_ASSIGN(const auto type, file_.GetString(Key("rope.scaling.type")));
    SHOAL_ASSIGN(float factor, FloatOr("rope.scaling.factor", 0));
    if (factor == 0) {
      SHOAL_ASSIGN(factor, FloatOr("rope.scale_linear", 0));  // the older name
    }
    if (factor < 0) return Corrupt(std::format("'{}' is {}, but must be above 0", Key("rope.scaling.factor"), factor));
    SHOAL_ASSIGN(rope.magnitude, FloatOr("rope.scaling.attn_factor", 1));
    SHOAL_ASSIGN(const int64_t original,
                 IntOr("rope.scaling.original_context_length", 1, limits::kMaxContext, spec_.context_length));
    rope.original_context = static_cast<int>(original);
    const std::string_view kind = type.value_or("linear");
    if (kind == "none") {
      rope.scaling = RopeScaling::kNone;
    } else if (kind == "linear") {
      rope.scaling = factor > 0 ? RopeScaling::kLinear : RopeScaling::kNone;
      if (factor > 0) rope.frequency_scale = 1 / factor;
    } else if (kind == "yarn") {
      if (file_.Find(Key("rope.scaling.yarn_log_multiplier")) != nullptr)
        return Unsupported(std::format("'{}' is not supported", Key("rope.scaling.yarn_log_multiplier")));
      rope.scaling = RopeScaling::kYarn;
      if (factor > 0) rope.frequency_scale = 1 / factor;
      SHOAL_ASSIGN(rope.extrapolation, FloatOr("rope.scaling.yarn_ext_factor", 1));
      SHOAL_ASSIGN(rope.beta_fast, Positive("rope.scaling.yarn_beta_fast", 32));
      SHOAL_ASSIGN(rope.beta_slow, Positive("rope.scaling.yarn_beta_slow", 1));
      if (factor > 1 && rope.extrapolation != 0) rope.magnitude *= 1 + 0.1f * std::log(factor);
    } else if (kind == "longrope") {
      longrope_ = spec_.context_length > rope.original_context ? 2 : 1;
    } else {
      return Unsupported(
          std::format("'{}' is '{}', which is not known", Key("rope.scaling.type"), Printable(kind, 64)));
    }
    return {};
  }

  Status ReadWindows() {
    for (size_t i = 0; i < spec_.layers.size(); ++i)
      spec_.layers[i].rope =
          spec_.rope.kind != RopeKind::kNone &&
          (traits_.no_rope_period == 0 || (i + 1) % static_cast<size_t>(traits_.no_rope_period) != 0);
    const auto window_key = Key("attention.sliding_window");
    if (traits_.window_period == 0) {
      if (file_.Find(window_key) != nullptr)
        Log().warn("{}: '{}' does not count in a {} model", file_.name(), window_key, traits_.arch);
      return {};
    }
    SHOAL_ASSIGN(const int64_t window,
                 IntOr("attention.sliding_window", 0, limits::kMaxContext, traits_.default_window));
    if (traits_.rope_only_sliding && window == 0) return Corrupt(std::format("'{}' is 0 or missing", window_key));
    if (window == 0) return {};
    SHOAL_ASSIGN(const auto slides, SlidingLayers());
    for (size_t i = 0; i < spec_.layers.size(); ++i) {
      auto& layer = spec_.layers[i];
      if (slides[i] != 0) {
        layer.window = static_cast<int>(window);
        layer.local_rope = !traits_.rope_only_sliding;
      } else if (traits_.rope_only_sliding) {
        layer.rope = false;
      }
    }
    return {};
  }

  // One flag a layer: by the file's pattern (a period, or a flag for each), else by the architecture's
  // period.
  Result<std::vector<int>> SlidingLayers() const {
    const auto key = Key("attention.sliding_window_pattern");
    const GgufValue* value = file_.Find(key);
    const auto layers = static_cast<size_t>(spec_.n_layers);
    if (value != nullptr && value->type == GgufType::kArray) {
      std::vector<int> flags;
      if (value->element == GgufType::kBool || value->element == GgufType::kUint8) {
        for (std::byte b : value->bytes) flags.push_back(b != std::byte{0} ? 1 : 0);
      } else {
        SHOAL_ASSIGN(const auto many, file_.GetInts(key, 0, 1));
        flags.assign(many->begin(), many->end());
      }
      if (flags.size() < layers)
        return Corrupt(std::format("'{}' has {} values for {} layers", key, flags.size(), layers));
      return flags;
    }
    SHOAL_ASSIGN(const auto given, file_.GetInt(key, 0, limits::kMaxLayers));
    const auto period = static_cast<size_t>(given.value_or(traits_.window_period));
    std::vector<int> flags(layers);
    for (size_t i = 0; i < layers; ++i) flags[i] = period == 0 || i % period < period - 1;
    return flags;
  }

  Status ReadScales() {
    const int scale_dim = traits_.wide_scale_layers > 0 && spec_.n_layers == traits_.wide_scale_layers
                              ? spec_.n_embd / spec_.layers[0].heads
                              : spec_.head_dim_k;
    spec_.attention_scale = 1 / std::sqrt(static_cast<float>(scale_dim));
    spec_.scaled_query = traits_.scaled_query;
    if (traits_.embedding_root) spec_.embedding_scale = std::sqrt(static_cast<float>(spec_.n_embd));
    if (traits_.granite_scales) {
      const auto unless_zero = [](float value, float otherwise) { return value != 0 ? value : otherwise; };
      SHOAL_ASSIGN(const float embedding, FloatOr("embedding_scale", 0));
      SHOAL_ASSIGN(const float residual, FloatOr("residual_scale", 0));
      SHOAL_ASSIGN(const float attention, FloatOr("attention.scale", 0));
      SHOAL_ASSIGN(const float logit, FloatOr("logit_scale", 0));
      if (logit == 0) return Corrupt(std::format("'{}' is 0 or missing", Key("logit_scale")));
      spec_.embedding_scale = unless_zero(embedding, 1);
      spec_.residual_scale = unless_zero(residual, 1);
      spec_.attention_scale = unless_zero(attention, spec_.attention_scale);
      spec_.logit_scale = 1 / logit;
    }
    if (traits_.logit_scale) {
      SHOAL_ASSIGN(const float logit, FloatOr("logit_scale", 0));
      if (logit == 0) return Corrupt(std::format("'{}' is 0 or missing", Key("logit_scale")));
      spec_.logit_scale = logit;
    }
    if (traits_.softcaps) {
      SHOAL_ASSIGN(spec_.attention_softcap, FloatOr("attn_logit_softcapping", traits_.default_attention_softcap));
      SHOAL_ASSIGN(spec_.final_softcap, FloatOr("final_logit_softcapping", traits_.default_final_softcap));
      if (spec_.attention_softcap < 0 || spec_.final_softcap < 0)
        return Corrupt(
            std::format("'{}' or '{}' is below 0", Key("attn_logit_softcapping"), Key("final_logit_softcapping")));
    }
    return {};
  }

  // The vocabulary is the file's token list; the embedding and the output must agree with it.
  Status ReadVocabulary() {
    const GgufValue* tokens = file_.Find("tokenizer.ggml.tokens");
    const TensorInfo* embedding = file_.FindTensor("token_embd.weight");
    if (embedding == nullptr)
      return Corrupt("tensor 'token_embd.weight' is missing (a file with a vocabulary only holds no model)");
    const int64_t rows = embedding->dims.size() >= 2 ? embedding->dims[1] : 1;
    int64_t count = rows;
    if (tokens != nullptr) {
      if (tokens->type != GgufType::kArray) return Corrupt("'tokenizer.ggml.tokens' is not an array");
      if (tokens->count > static_cast<uint64_t>(limits::kMaxVocabulary))
        return Unsupported(
            std::format("{} tokens, but at most {} are supported", tokens->count, limits::kMaxVocabulary));
      count = static_cast<int64_t>(tokens->count);
      if (count != rows)
        return Corrupt(
            std::format("'tokenizer.ggml.tokens' has {} tokens, but 'token_embd.weight' has {} rows", count, rows));
    }
    if (count < 1 || count > limits::kMaxVocabulary)
      return Unsupported(std::format("{} tokens, but 1 to {} are supported", count, limits::kMaxVocabulary));
    if (const TensorInfo* output = file_.FindTensor("output.weight");
        output != nullptr && output->dims.size() >= 2 && output->dims[1] != count)
      return Corrupt(std::format("'output.weight' has {} rows, but there are {} tokens", output->dims[1], count));
    spec_.n_vocab = static_cast<int>(count);
    return {};
  }

  const GgufFile& file_;
  const ArchTraits& traits_;
  ModelSpec spec_;
  int longrope_ = 0;
};

}  // namespace

Result<ModelSpec> ReadModelSpec(const GgufFile& file) {
  SHOAL_ASSIGN(const auto arch, file.GetString("general.architecture"));
  if (!arch)
    return Fail(Code::kCorrupt, reasons::kModelCorrupt, file.name() + ": the key 'general.architecture' is missing");
  const ArchTraits* traits = FindArch(*arch);
  if (traits == nullptr)
    return Fail(Code::kUnsupported, reasons::kUnsupportedArch,
                std::format("{}: the architecture '{}' is not supported", file.name(), Printable(*arch, 64)));
  return SpecReader(file, *traits).Read();
}

}  // namespace shoal
