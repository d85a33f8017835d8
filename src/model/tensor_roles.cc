#include "model/tensor_roles.h"

#include <algorithm>
#include <format>
#include <set>
#include <string>
#include <utility>

#include "base/log.h"
#include "core/reasons.h"
#include "model/gguf.h"

namespace shoal {
namespace {

// GGUF's numbers of the types that compute/kernels has; vectors (norms, biases) are one of the first three.
constexpr uint32_t kF32 = 0, kF16 = 1, kBf16 = 30;
constexpr uint32_t kMatrixTypes[] = {kF32, kF16, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, kBf16};

std::string Shape(std::span<const int64_t> dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

enum class Need { kRequired, kOptional };

// Looks tensors up by name and remembers which were asked for.
class Finder {
 public:
  Finder(const GgufFile& file, ModelSpec& spec) : file_(file), spec_(spec) {}

  bool Has(const std::string& name) const { return file_.FindTensor(name) != nullptr; }

  // [columns, rows] or, with matrices > 1 or as a stack of one, [columns, rows, matrices].
  Result<TensorRef> Matrix(const std::string& name, int64_t columns, int64_t rows, Need need, int64_t matrices = 0) {
    std::vector<int64_t> dims{columns, rows};
    if (matrices > 0) dims.push_back(matrices);
    SHOAL_ASSIGN(TensorRef ref, Find(name, dims, need));
    if (!ref) return ref;
    if (std::ranges::find(kMatrixTypes, ref.type) == std::end(kMatrixTypes)) return WrongType(name, ref.type);
    ref.rows = ref.matrix_stride = rows;
    ref.matrices = std::max<int64_t>(matrices, 1);
    return ref;
  }

  Result<TensorRef> Vector(const std::string& name, int64_t size, Need need) {
    SHOAL_ASSIGN(TensorRef ref, Find(name, {size}, need));
    if (ref && ref.type != kF32 && ref.type != kF16 && ref.type != kBf16) return WrongType(name, ref.type);
    return ref;
  }

  // A small matrix that is kept in f32 (per-head norms).
  Result<TensorRef> Rows(const std::string& name, int64_t columns, int64_t rows, Need need) {
    SHOAL_ASSIGN(TensorRef ref, Find(name, {columns, rows}, need));
    if (ref && ref.type != kF32 && ref.type != kF16 && ref.type != kBf16) return WrongType(name, ref.type);
    if (ref) ref.rows = ref.matrix_stride = rows;
    return ref;
  }

  Result<LinearRef> Linear(const std::string& name, int64_t columns, int64_t rows, Need need, Need bias) {
    LinearRef linear;
    SHOAL_ASSIGN(linear.weight, Matrix(name + ".weight", columns, rows, need));
    if (!linear.weight) return linear;
    SHOAL_ASSIGN(linear.bias, Vector(name + ".bias", rows, bias));
    return linear;
  }

  Result<NormRef> Norm(const std::string& name, int64_t size, Need need, Need bias) {
    NormRef norm;
    SHOAL_ASSIGN(norm.weight, Vector(name + ".weight", size, need));
    if (!norm.weight) return norm;
    SHOAL_ASSIGN(norm.bias, Vector(name + ".bias", size, bias));
    return norm;
  }

  // Says which tensors the model does not use, so that a file of another make does not pass silently.
  void ReportUnused() const {
    size_t unused = 0;
    std::string first;
    for (const auto& tensor : file_.tensors()) {
      if (used_.contains(tensor.name)) continue;
      if (unused++ == 0) first = tensor.name;
    }
    if (unused > 0)
      Log().warn("{}: {} tensors are not part of a {} model and are left out, the first is '{}'", file_.name(), unused,
                 spec_.arch, first);
  }

 private:
  Result<TensorRef> Find(const std::string& name, std::vector<int64_t> dims, Need need) {
    const TensorInfo* info = file_.FindTensor(name);
    if (info == nullptr) {
      if (need == Need::kOptional) return TensorRef{};
      return Fail(Code::kCorrupt, reasons::kModelCorrupt,
                  std::format("{}: tensor '{}' is missing, a {} model needs it", file_.name(), name, spec_.arch));
    }
    // Trailing dimensions of one may be written or not.
    std::vector<int64_t> have = info->dims, want = dims;
    while (have.size() > 1 && have.back() == 1) have.pop_back();
    while (want.size() > 1 && want.back() == 1) want.pop_back();
    if (have != want)
      return Fail(Code::kCorrupt, reasons::kModelCorrupt,
                  std::format("{}: tensor '{}' has the shape {}, but {} is needed", file_.name(), name,
                              Shape(info->dims), Shape(dims)));
    if (used_.insert(name).second) spec_.tensor_bytes += info->bytes;
    TensorRef ref;
    ref.tensor = static_cast<int32_t>(info - file_.tensors().data());
    ref.type = info->type;
    ref.columns = info->columns();
    ref.rows = ref.matrix_stride = 1;
    ref.row_bytes = info->row_bytes();
    ref.name = name;
    return ref;
  }

  std::unexpected<Error> WrongType(const std::string& name, uint32_t type) const {
    return Fail(Code::kUnsupported, reasons::kUnsupportedType,
                std::format("{}: tensor '{}' has the type {}, which cannot be used there", file_.name(), name, type));
  }

  const GgufFile& file_;
  ModelSpec& spec_;
  std::set<std::string> used_;
};

Need Required(bool required) { return required ? Need::kRequired : Need::kOptional; }

// Rows [first, first + rows) of a fused tensor.
LinearRef Part(const LinearRef& fused, int64_t first, int64_t rows) {
  LinearRef part = fused;
  part.weight.first_row = first;
  part.weight.rows = rows;
  if (part.bias) {  // a vector of parts: kept as one row, of which `columns` from `first_row` on count
    part.bias.first_row = first;
    part.bias.rows = 1;
    part.bias.columns = rows;
  }
  return part;
}

class LayerFinder {
 public:
  LayerFinder(Finder& find, const ArchTraits& traits, const ModelSpec& spec, int index, LayerSpec& layer)
      : find_(find), traits_(traits), spec_(spec), layer_(layer), prefix_("blk." + std::to_string(index) + ".") {}

  Status Run() {
    SHOAL_RETURN_IF_ERROR(Norms());
    SHOAL_RETURN_IF_ERROR(Attention());
    return layer_.experts ? ExpertFfn() : DenseFfn();
  }

 private:
  std::string Name(const char* role) const { return prefix_ + role; }
  Need Bias(BiasSet set) const { return Required((traits_.biases & set) != 0); }

  Status Norms() {
    const auto norm_bias = Bias(kNormBias);
    const int64_t n = spec_.n_embd;
    if (traits_.pre_norms) {
      SHOAL_ASSIGN(layer_.attention_norm, find_.Norm(Name("attn_norm"), n, Need::kRequired, norm_bias));
      if (find_.Has(Name("attn_norm_2.weight")) && traits_.parallel == Parallel::kYes) {
        // Falcon 40B: the first norm is the FFN's.
        layer_.ffn_norm = layer_.attention_norm;
        SHOAL_ASSIGN(layer_.attention_norm, find_.Norm(Name("attn_norm_2"), n, Need::kRequired, norm_bias));
      } else if (traits_.parallel != Parallel::kYes) {
        const bool optional = traits_.parallel == Parallel::kWithoutFfnNorm && spec_.parallel;
        if (!optional) {
          SHOAL_ASSIGN(layer_.ffn_norm, find_.Norm(Name("ffn_norm"), n, Need::kRequired, norm_bias));
        }
      }
    }
    if (traits_.post_norms) {
      SHOAL_ASSIGN(layer_.attention_post_norm,
                   find_.Norm(Name("post_attention_norm"), n, Need::kRequired, Need::kOptional));
      SHOAL_ASSIGN(layer_.ffn_post_norm, find_.Norm(Name("post_ffw_norm"), n, Need::kRequired, Need::kOptional));
    }
    return {};
  }

  Status Attention() {
    const int64_t q_rows = int64_t{layer_.heads} * spec_.head_dim_k;
    const int64_t k_rows = int64_t{layer_.kv_heads} * spec_.head_dim_k;
    const int64_t v_rows = int64_t{layer_.kv_heads} * spec_.head_dim_v;
    const auto bias = Bias(kQkvBias);
    if (find_.Has(Name("attn_qkv.weight"))) {
      SHOAL_ASSIGN(const LinearRef fused,
                   find_.Linear(Name("attn_qkv"), spec_.n_embd, q_rows + k_rows + v_rows, Need::kRequired, bias));
      layer_.q = Part(fused, 0, q_rows);
      layer_.k = Part(fused, q_rows, k_rows);
      layer_.v = Part(fused, q_rows + k_rows, v_rows);
    } else {
      SHOAL_ASSIGN(layer_.q, find_.Linear(Name("attn_q"), spec_.n_embd, q_rows, Need::kRequired, bias));
      SHOAL_ASSIGN(layer_.k, find_.Linear(Name("attn_k"), spec_.n_embd, k_rows, Need::kRequired, bias));
      SHOAL_ASSIGN(layer_.v, find_.Linear(Name("attn_v"), spec_.n_embd, v_rows, Need::kRequired, bias));
    }
    SHOAL_ASSIGN(layer_.o, find_.Linear(Name("attn_output"), int64_t{layer_.heads} * spec_.head_dim_v, spec_.n_embd,
                                        Need::kRequired, Bias(kOutBias)));
    return QkNorms();
  }

  Status QkNorms() {
    const int64_t dim = spec_.head_dim_k;
    switch (spec_.qk_norm) {
      case QkNorm::kNone:
        break;
      case QkNorm::kPerHead: {
        SHOAL_ASSIGN(layer_.q_norm.weight, find_.Vector(Name("attn_q_norm.weight"), dim, Need::kRequired));
        SHOAL_ASSIGN(layer_.k_norm.weight, find_.Vector(Name("attn_k_norm.weight"), dim, Need::kRequired));
        break;
      }
      case QkNorm::kPerHeadOwn: {
        SHOAL_ASSIGN(layer_.q_norm.weight, find_.Rows(Name("attn_q_norm.weight"), dim, layer_.heads, Need::kRequired));
        SHOAL_ASSIGN(layer_.k_norm.weight,
                     find_.Rows(Name("attn_k_norm.weight"), dim, layer_.kv_heads, Need::kRequired));
        break;
      }
      case QkNorm::kWholeVector: {
        SHOAL_ASSIGN(layer_.q_norm.weight,
                     find_.Vector(Name("attn_q_norm.weight"), dim * layer_.heads, Need::kRequired));
        SHOAL_ASSIGN(layer_.k_norm.weight,
                     find_.Vector(Name("attn_k_norm.weight"), dim * layer_.kv_heads, Need::kRequired));
        break;
      }
    }
    return {};
  }

  Status DenseFfn() {
    const auto bias = Bias(kFfnBias);
    const int64_t n = spec_.n_embd, width = layer_.n_ff;
    if (traits_.gate && !find_.Has(Name("ffn_gate.weight")) && traits_.arch == "phi3") {
      // Gate and up in one tensor, the gate first.
      SHOAL_ASSIGN(const LinearRef fused, find_.Linear(Name("ffn_up"), n, 2 * width, Need::kRequired, bias));
      layer_.gate = Part(fused, 0, width);
      layer_.up = Part(fused, width, width);
    } else {
      if (traits_.gate) {
        SHOAL_ASSIGN(layer_.gate, find_.Linear(Name("ffn_gate"), n, width, Need::kRequired, bias));
      }
      SHOAL_ASSIGN(layer_.up, find_.Linear(Name("ffn_up"), n, width, Need::kRequired, bias));
    }
    SHOAL_ASSIGN(layer_.down, find_.Linear(Name("ffn_down"), width, n, Need::kRequired, bias));
    return {};
  }

  Status ExpertFfn() {
    const int64_t n = spec_.n_embd, width = spec_.n_ff_expert, experts = spec_.n_experts;
    SHOAL_ASSIGN(layer_.router, find_.Matrix(Name("ffn_gate_inp.weight"), n, experts, Need::kRequired));
    SHOAL_ASSIGN(layer_.gate_experts, find_.Matrix(Name("ffn_gate_exps.weight"), n, width, Need::kRequired, experts));
    SHOAL_ASSIGN(layer_.up_experts, find_.Matrix(Name("ffn_up_exps.weight"), n, width, Need::kRequired, experts));
    SHOAL_ASSIGN(layer_.down_experts, find_.Matrix(Name("ffn_down_exps.weight"), width, n, Need::kRequired, experts));
    if (spec_.n_ff_shared == 0) return {};
    const int64_t shared = spec_.n_ff_shared;
    SHOAL_ASSIGN(layer_.shared_gate, find_.Linear(Name("ffn_gate_shexp"), n, shared, Need::kRequired, Need::kOptional));
    SHOAL_ASSIGN(layer_.shared_up, find_.Linear(Name("ffn_up_shexp"), n, shared, Need::kRequired, Need::kOptional));
    SHOAL_ASSIGN(layer_.shared_down, find_.Linear(Name("ffn_down_shexp"), shared, n, Need::kRequired, Need::kOptional));
    if (traits_.shared == SharedExpert::kGated) {
      SHOAL_ASSIGN(layer_.shared_router, find_.Matrix(Name("ffn_gate_inp_shexp.weight"), n, 1, Need::kRequired));
    }
    return {};
  }

  Finder& find_;
  const ArchTraits& traits_;
  const ModelSpec& spec_;
  LayerSpec& layer_;
  std::string prefix_;
};

Status FindRopeFactors(Finder& find, int longrope, RopeSpec& rope) {
  if (rope.kind == RopeKind::kNone) return {};
  if (longrope == 0) {
    SHOAL_ASSIGN(rope.factors, find.Vector("rope_freqs.weight", rope.dims / 2, Need::kOptional));
    return {};
  }
  // Both kinds belong to the model; which one counts depends on the context it serves.
  SHOAL_ASSIGN(TensorRef long_factors, find.Vector("rope_factors_long.weight", rope.dims / 2, Need::kRequired));
  SHOAL_ASSIGN(TensorRef short_factors, find.Vector("rope_factors_short.weight", rope.dims / 2, Need::kRequired));
  rope.factors = longrope == 2 ? std::move(long_factors) : std::move(short_factors);
  return {};
}

}  // namespace

Status FindTensors(const GgufFile& file, const ArchTraits& traits, int longrope, ModelSpec& spec) {
  Finder find(file, spec);
  const auto norm_bias = Required((traits.biases & kNormBias) != 0);
  SHOAL_ASSIGN(spec.embedding, find.Matrix("token_embd.weight", spec.n_embd, spec.n_vocab, Need::kRequired));
  if (traits.learned_positions) {
    SHOAL_ASSIGN(spec.positions,
                 find.Matrix("position_embd.weight", spec.n_embd, spec.context_length, Need::kRequired));
  }
  SHOAL_ASSIGN(spec.final_norm, find.Norm("output_norm", spec.n_embd, Need::kRequired, norm_bias));
  const auto own = Required(traits.output == OutputTensor::kOwn);
  SHOAL_ASSIGN(spec.output, find.Linear("output", spec.n_embd, spec.n_vocab, own, Need::kOptional));
  if (!spec.output) {
    spec.output.weight = spec.embedding;
    spec.tied_output = true;
  }
  SHOAL_RETURN_IF_ERROR(FindRopeFactors(find, longrope, spec.rope));

  // Some models keep query and key norms, or the FFN's norm, only in some sizes; the first layer tells.
  spec.qk_norm = traits.qk_norm;
  if (traits.qk_norm_optional && !find.Has("blk.0.attn_q_norm.weight")) spec.qk_norm = QkNorm::kNone;
  if (traits.parallel == Parallel::kWithoutFfnNorm) spec.parallel = !find.Has("blk.0.ffn_norm.weight");

  for (int i = 0; i < spec.n_layers; ++i)
    SHOAL_RETURN_IF_ERROR(LayerFinder(find, traits, spec, i, spec.layers[static_cast<size_t>(i)]).Run());
  find.ReportUnused();
  return {};
}

}  // namespace shoal
