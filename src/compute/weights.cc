#include "compute/weights.h"

#include <algorithm>
#include <cstring>
#include <format>
#include <new>
#include <utility>

#include "base/check.h"
#include "core/reasons.h"

namespace shoal {
namespace {

using kernels::KLayout;
using kernels::PackedMatrix;
using kernels::WeightType;

constexpr uint64_t kReadBytes = 16 << 20;  // a request to the source at most, unless one row is longer

class Loader {
 public:
  Loader(const ModelSpec& spec, TensorSource& source, const RankShare& share, int threads)
      : spec_(spec), source_(source), share_(share), run_(share.slices), threads_(threads) {}

  Result<ShardWeights> Load() {
    const bool first = share_.first_layer == 0, last = share_.last_layer == spec_.n_layers;
    if (first) SHOAL_RETURN_IF_ERROR(Beginning(last));
    if (last) SHOAL_RETURN_IF_ERROR(Ending());
    SHOAL_ASSIGN(out_.rope_factors, Vector(spec_.rope.factors));
    for (int i = share_.first_layer; i < share_.last_layer; ++i) {
      SHOAL_ASSIGN(auto weights, Layer(spec_.layers[static_cast<size_t>(i)]));
      out_.layers.push_back(std::move(weights));
    }
    return std::move(out_);
  }

 private:
  // with_output: the output matrix is here too, and where the embedding is the same tensor, it serves both.
  Status Beginning(bool with_output) {
    const auto& tied = spec_.output.weight;
    const bool packed = with_output && tied && tied.tensor == spec_.embedding.tensor &&
                        tied.first_row == spec_.embedding.first_row && tied.rows == spec_.embedding.rows;
    SHOAL_ASSIGN(out_.embedding, Table(spec_.embedding, packed));
    SHOAL_ASSIGN(out_.positions, Table(spec_.positions, false));
    SHOAL_ASSIGN(out_.embedding_norm, Norm(spec_.embedding_norm));
    return {};
  }

  Status Ending() {
    out_.vocabulary = UnitsOf(run_, spec_.n_vocab);
    SHOAL_ASSIGN(out_.final_norm, Norm(spec_.final_norm));
    SHOAL_ASSIGN(out_.output, Columns(spec_.output, out_.vocabulary));
    return {};
  }

  Result<LayerWeights> Layer(const LayerSpec& layer) {
    LayerWeights out;
    out.shape = ShapeOf(spec_, layer, run_);
    const auto& shape = out.shape;
    SHOAL_ASSIGN(out.attention_norm, Norm(layer.attention_norm));
    SHOAL_ASSIGN(out.attention_post_norm, Norm(layer.attention_post_norm));
    SHOAL_ASSIGN(out.ffn_norm, Norm(layer.ffn_norm));
    SHOAL_ASSIGN(out.ffn_post_norm, Norm(layer.ffn_post_norm));
    const auto rows = [](UnitRange units, int64_t each) { return UnitRange{units.first * each, units.last * each}; };
    SHOAL_ASSIGN(out.q, Columns(layer.q, rows(shape.heads, spec_.head_dim_k)));
    SHOAL_ASSIGN(out.k, Columns(layer.k, rows(shape.kv_heads, spec_.head_dim_k)));
    SHOAL_ASSIGN(out.v, Columns(layer.v, rows(shape.kv_heads, spec_.head_dim_v)));
    SHOAL_ASSIGN(out.o, Rows(layer.o, HeadsLayout(spec_, layer, run_)));
    SHOAL_ASSIGN(out.q_norm, HeadNorm(layer.q_norm.weight, shape.heads));
    SHOAL_ASSIGN(out.k_norm, HeadNorm(layer.k_norm.weight, shape.kv_heads));
    SHOAL_RETURN_IF_ERROR(layer.experts ? Experts(layer, out) : Dense(layer, out));
    return out;
  }

  Status Dense(const LayerSpec& layer, LayerWeights& out) {
    SHOAL_ASSIGN(out.gate, Columns(layer.gate, out.shape.columns));
    SHOAL_ASSIGN(out.up, Columns(layer.up, out.shape.columns));
    SHOAL_ASSIGN(out.down, Rows(layer.down, FfnLayout(layer.n_ff, run_)));
    return {};
  }

  Status Experts(const LayerSpec& layer, LayerWeights& out) {
    SHOAL_ASSIGN(out.router, Columns({layer.router, {}}, {0, spec_.n_experts}));
    const auto layout = SplitSlices(FfnLayout(spec_.n_ff_expert, run_));
    for (int e = 0; e < spec_.n_experts; ++e) {
      ExpertWeights expert;
      SHOAL_ASSIGN(expert.gate, Matrix(Expert(layer.gate_experts, e), out.shape.columns, KLayout::Whole(spec_.n_embd)));
      SHOAL_ASSIGN(expert.up, Matrix(Expert(layer.up_experts, e), out.shape.columns, KLayout::Whole(spec_.n_embd)));
      SHOAL_ASSIGN(expert.down, Matrix(Expert(layer.down_experts, e), {0, spec_.n_embd}, layout));
      out.experts.push_back(std::move(expert));
    }
    SHOAL_ASSIGN(out.shared_gate, Columns(layer.shared_gate, out.shape.shared));
    SHOAL_ASSIGN(out.shared_up, Columns(layer.shared_up, out.shape.shared));
    SHOAL_ASSIGN(out.shared_down, Rows(layer.shared_down, FfnLayout(spec_.n_ff_shared, run_)));
    SHOAL_ASSIGN(out.shared_router, Columns({layer.shared_router, {}}, {0, 1}));
    return {};
  }

  static TensorRef Expert(const TensorRef& stack, int64_t index) {
    TensorRef one = stack;
    one.first_row += index * stack.matrix_stride;
    one.matrices = 1;
    return one;
  }

  // A column-parallel matrix: all of K, some of the rows.
  Result<LinearWeights> Columns(const LinearRef& ref, UnitRange rows) {
    LinearWeights out;
    if (!ref) return out;
    SHOAL_ASSIGN(out.matrix, Matrix(ref.weight, rows, KLayout::Whole(ref.weight.columns)));
    SHOAL_ASSIGN(auto bias, Vector(ref.bias));
    if (!bias.empty()) out.bias.assign(bias.begin() + rows.first, bias.begin() + rows.last);
    return out;
  }

  // A row-parallel matrix: all rows, some of K. Its bias is added once, after the sum, by every rank.
  Result<LinearWeights> Rows(const LinearRef& ref, const KLayout& layout) {
    LinearWeights out;
    if (!ref) return out;
    SHOAL_ASSIGN(out.matrix, Matrix(ref.weight, {0, ref.weight.rows}, layout));
    SHOAL_ASSIGN(out.bias, Vector(ref.bias));
    return out;
  }

  Result<std::optional<PackedMatrix>> Matrix(const TensorRef& ref, UnitRange rows, const KLayout& layout) {
    std::optional<PackedMatrix> none;
    if (!ref || rows.count() == 0 || layout.columns() == 0) return none;
    const auto type = static_cast<WeightType>(ref.type);
    const kernels::TypeInfo* info = kernels::FindType(type);
    if (info == nullptr)
      return Fail(Code::kUnsupported, reasons::kUnsupportedType,
                  std::format("tensor '{}' has the type {}, which cannot be computed with", ref.name, ref.type));
    // The slice's columns, out to the type's own blocks.
    const int64_t first = layout.first_column / info->block_columns * info->block_columns;
    const int64_t last = std::min(
        ref.columns, (layout.last_column + info->block_columns - 1) / info->block_columns * info->block_columns);
    const auto begin = static_cast<uint64_t>(first / info->block_columns) * info->block_bytes;
    const auto end = static_cast<uint64_t>(last / info->block_columns) * info->block_bytes;
    kernels::PackSource pack;
    pack.type = type;
    pack.rows = rows.count();
    pack.first_column = first;
    pack.columns = last - first;
    pack.row_bytes = end - begin;
    pack.read = [&](int64_t row, int64_t count, std::span<std::byte> out) {
      return ReadRows(ref, {rows.first + row, rows.first + row + count}, begin, end, out);
    };
    SHOAL_ASSIGN(auto matrix, PackedMatrix::Pack(pack, layout, threads_));
    out_.bytes += matrix.resident_bytes();
    return std::optional<PackedMatrix>(std::move(matrix));
  }

  // Bytes [begin, end) of each of `rows`.
  Status ReadRows(const TensorRef& ref, UnitRange rows, uint64_t begin, uint64_t end, std::span<std::byte> out) const {
    const uint64_t length = end - begin;
    const auto count = static_cast<uint64_t>(rows.count());
    SHOAL_CHECK(out.size() == length * count);
    const uint64_t at_once = std::max<uint64_t>(1, kReadBytes / std::max<uint64_t>(1, length));
    for (uint64_t done = 0; done < count; done += at_once) {
      const uint64_t now = std::min(at_once, count - done);
      TensorRange range;
      range.tensor = static_cast<uint32_t>(ref.tensor);
      range.offset = (static_cast<uint64_t>(ref.first_row + rows.first) + done) * ref.row_bytes + begin;
      if (length == ref.row_bytes) {  // whole rows lie one after the other
        range.length = range.stride = length * now;
        range.count = 1;
      } else {
        range.length = length;
        range.stride = ref.row_bytes;
        range.count = now;
      }
      SHOAL_RETURN_IF_ERROR(source_.Read(range, out.subspan(done * length, now * length)));
    }
    return {};
  }

  Result<TableWeights> Table(const TensorRef& ref, bool packed) {
    TableWeights table;
    if (!ref) return table;
    table.ref = ref;
    table.rows = UnitsOf(run_, ref.rows);
    table.packed = packed;
    if (packed) return table;
    table.bytes.resize(static_cast<size_t>(table.rows.count()) * ref.row_bytes);
    SHOAL_RETURN_IF_ERROR(ReadRows(ref, table.rows, 0, ref.row_bytes, table.bytes));
    out_.bytes += table.bytes.size();
    return table;
  }

  // A vector (or some rows of a small matrix) as f32.
  Result<std::vector<float>> Widen(const TensorRef& ref, UnitRange rows) {
    std::vector<float> out;
    if (!ref || rows.count() == 0) return out;
    const auto type = static_cast<WeightType>(ref.type);
    const kernels::TypeInfo* info = kernels::FindType(type);
    SHOAL_CHECK(info != nullptr && info->block_columns == 1);
    // Of a fused vector, first_row is the first value.
    const bool vector = ref.rows == 1 && ref.first_row > 0;
    TensorRef from = ref;
    if (vector) from.first_row = 0;
    const uint64_t begin = vector ? static_cast<uint64_t>(ref.first_row) * info->block_bytes : 0;
    const uint64_t end = begin + static_cast<uint64_t>(ref.columns) * info->block_bytes;
    buffer_.resize((end - begin) * static_cast<size_t>(rows.count()));
    SHOAL_RETURN_IF_ERROR(ReadRows(from, rows, begin, end, buffer_));
    out.resize(static_cast<size_t>(ref.columns * rows.count()));
    kernels::Dequantize(type, buffer_.data(), static_cast<int64_t>(out.size()), out.data());
    out_.bytes += out.size() * sizeof(float);
    return out;
  }

  Result<std::vector<float>> Vector(const TensorRef& ref) { return Widen(ref, {0, 1}); }

  Result<NormWeights> Norm(const NormRef& ref) {
    NormWeights norm;
    SHOAL_ASSIGN(norm.weight, Vector(ref.weight));
    SHOAL_ASSIGN(norm.bias, Vector(ref.bias));
    return norm;
  }

  // The weights of the heads held: one vector for all, a row a head, or a part of one long vector.
  Result<std::vector<float>> HeadNorm(const TensorRef& ref, UnitRange heads) {
    if (!ref) return std::vector<float>{};
    if (spec_.qk_norm == QkNorm::kPerHeadOwn) return Widen(ref, heads);
    SHOAL_ASSIGN(auto all, Vector(ref));
    if (spec_.qk_norm == QkNorm::kPerHead) return all;
    const int64_t dim = spec_.head_dim_k;
    return std::vector<float>(all.begin() + heads.first * dim, all.begin() + heads.last * dim);
  }

  const ModelSpec& spec_;
  TensorSource& source_;
  const RankShare share_;
  const SliceRun run_;
  const int threads_;
  ShardWeights out_;
  std::vector<std::byte> buffer_;  // Widen's
};

}  // namespace

Result<ShardWeights> LoadWeights(const ModelSpec& spec, TensorSource& source, const RankShare& share, int threads) {
  try {
    return Loader(spec, source, share, threads).Load();
  } catch (const std::bad_alloc&) {
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                std::format("not enough memory for this share of '{}'", spec.name));
  }
}

}  // namespace shoal
