// What: everything the program knows of a model's shape, read once from its file by model/spec_reader.h and
// checked there: sizes, the variations of the transformer that its architecture has, and where each weight
// lies. Plain values. An executor needs a ModelSpec and a TensorSource, and nothing else of the file. Reads
// next: model/spec_reader.h, compute/executor.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

enum class NormKind { kRms, kLayer };  // kLayer subtracts the mean; either may have a bias
enum class Activation { kSilu, kGelu, kGeluErf, kRelu, kReluSquared };  // kGelu: the tanh form
enum class RopeKind { kNone, kPairs, kHalves };  // which values turn together: (0,1),(2,3)... or (0,d/2),(1,d/2+1)...
enum class RopeScaling { kNone, kLinear, kYarn };
enum class QkNorm {
  kNone,
  kPerHead,      // each head by itself, one weight vector of a head's size for all heads
  kPerHeadOwn,   // each head by itself, each with its own weights
  kWholeVector,  // all heads together
};
enum class Routing {
  kSoftmaxThenTop,  // probabilities over all experts, the best k of them
  kTopThenSoftmax,  // the best k, probabilities among those
};

// A matrix (or a stack of `matrices` of them, one per expert) or vector in the file. Rows are contiguous in
// the file.
struct TensorRef {
  int32_t tensor = -1;  // index in the file's (joined) tensor table; -1: the model has none
  uint32_t type = 0;    // GGUF's number (compute/kernels/linear.h WeightType)
  int64_t columns = 0;
  int64_t rows = 0;       // of one matrix; a vector has one row
  int64_t first_row = 0;  // where the matrix starts in a fused tensor (QKV, gate and up)
  int64_t matrices = 1;
  int64_t matrix_stride = 0;  // rows from one matrix to the next
  uint64_t row_bytes = 0;
  std::string name;  // for messages
  explicit operator bool() const { return tensor >= 0; }
};

struct LinearRef {
  TensorRef weight;
  TensorRef bias;  // may be missing
  explicit operator bool() const { return static_cast<bool>(weight); }
};

struct NormRef {
  TensorRef weight;  // may be missing where the architecture's norms have none
  TensorRef bias;
  explicit operator bool() const { return static_cast<bool>(weight); }
};

// Rotary embedding of one kind of layers.
struct RopeSpec {
  RopeKind kind = RopeKind::kNone;
  int dims = 0;  // the first `dims` values of a head turn
  float base = 10000.0f;
  float frequency_scale = 1;  // 1 / scaling factor
  RopeScaling scaling = RopeScaling::kNone;
  int original_context = 0;  // yarn
  float extrapolation = 0;   // yarn's mix; 0 unless kYarn
  float magnitude = 1;       // multiplies the turned values
  float beta_fast = 32;
  float beta_slow = 1;
  TensorRef factors;  // divide the frequencies (llama3, longrope); [dims / 2] f32, may be missing
};

struct LayerSpec {
  int heads = 0;
  int kv_heads = 0;
  int window = 0;           // 0: sees every earlier position; else only positions > p - window
  bool rope = true;         // smollm3: some layers have none
  bool local_rope = false;  // turns by ModelSpec::local_rope
  int n_ff = 0;             // width of the dense FFN; 0 where the layer has experts instead
  bool experts = false;

  NormRef attention_norm;  // missing: the input goes in as it is (olmo2)
  LinearRef q, k, v, o;
  NormRef q_norm, k_norm;
  NormRef attention_post_norm;  // of the attention's result, before it is added
  NormRef ffn_norm;             // missing with ModelSpec::parallel: shares attention_norm's output
  LinearRef gate, up, down;     // gate is missing where the FFN has none
  NormRef ffn_post_norm;
  TensorRef router;  // [n_experts, n_embd]
  TensorRef gate_experts, up_experts, down_experts;
  LinearRef shared_gate, shared_up, shared_down;
  TensorRef shared_router;  // [1, n_embd]: the shared expert's result is times its sigmoid; may be missing
};

struct ModelSpec {
  std::string arch;  // GGUF's general.architecture
  std::string name;  // general.name, or the file's
  int n_layers = 0;
  int n_embd = 0;
  int n_vocab = 0;
  int context_length = 0;  // what the model was made for; serving keeps within it
  int head_dim_k = 0;
  int head_dim_v = 0;

  int n_experts = 0;
  int n_experts_used = 0;
  int n_ff_expert = 0;
  int n_ff_shared = 0;  // 0: no shared expert
  Routing routing = Routing::kSoftmaxThenTop;
  bool normalise_expert_weights = false;
  float expert_weights_scale = 1;

  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-5f;
  Activation activation = Activation::kSilu;
  bool parallel = false;  // attention and FFN both read the layer's input and are added together
  QkNorm qk_norm = QkNorm::kNone;
  NormKind qk_norm_kind = NormKind::kRms;
  bool qk_norm_after_rope = false;

  RopeSpec rope;
  RopeSpec local_rope;          // gemma3's sliding layers
  float attention_scale = 0;    // multiplies q . k
  bool scaled_query = false;    // the scale is applied to the queries, before they are rounded to f16
  float attention_softcap = 0;  // 0: none
  float final_softcap = 0;
  float embedding_scale = 1;
  float residual_scale = 1;  // multiplies what a block adds
  float logit_scale = 1;     // multiplies the logits
  float clamp_qkv = 0;       // 0: none

  TensorRef embedding;     // [n_vocab, n_embd]
  TensorRef positions;     // [context, n_embd]; missing unless learned
  NormRef embedding_norm;  // may be missing
  NormRef final_norm;
  LinearRef output;  // logits; the embedding's own tensor when tied
  bool tied_output = false;
  std::vector<LayerSpec> layers;

  uint64_t tensor_bytes = 0;  // of all tensors the model uses, as they lie in the file
  bool mixture() const { return n_experts > 0; }
};

// More ranks than this bring nothing: at least one layer's product leaves them without any unit.
int MaxUsefulRanks(const ModelSpec& spec);

// One line: "llama, 22 layers of 2048, 32 heads (4 KV), FFN 5632, vocabulary 32000".
std::string Summary(const ModelSpec& spec);

}  // namespace shoal
