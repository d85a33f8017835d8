// What: one row per architecture: in what it varies from the plain transformer. The reader
// (model/spec_reader.h) turns a row and a file's metadata into a ModelSpec; a new architecture of a known
// make is a new row. Facts follow llama.cpp's src/models (which defines what a GGUF file of that architecture
// means); an architecture without a row is refused.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/model_spec.h"

namespace shoal {

enum class OutputTensor { kOwn, kOwnOrTied };
enum class Experts { kNone, kOptional, kRequired };
enum class SharedExpert { kNone, kPlainOptional, kGated };
enum class Parallel { kNo, kYes, kByKey, kWithoutFfnNorm };
// Which tensors of biases must be there; those not named here are used when they are.
enum BiasSet : uint32_t { kNoBias = 0, kQkvBias = 1, kOutBias = 2, kFfnBias = 4, kNormBias = 8, kAllBiases = 15 };

struct ArchTraits {
  std::string_view arch;
  NormKind norm = NormKind::kRms;
  RopeKind rope = RopeKind::kHalves;
  Activation activation = Activation::kSilu;
  bool gate = true;
  uint32_t biases = kNoBias;
  OutputTensor output = OutputTensor::kOwnOrTied;
  bool pre_norms = true;
  bool post_norms = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool qk_norm_optional = false;
  Parallel parallel = Parallel::kNo;
  bool learned_positions = false;

  Experts experts = Experts::kNone;
  SharedExpert shared = SharedExpert::kNone;
  bool expert_width_key = false;  // experts' width is expert_feed_forward_length, else feed_forward_length
  bool normalise_experts = true;

  // Sliding windows: of every `window_period` layers all but the last slide (a pattern in the file
  // overrules).
  int window_period = 0;      // 0: none, whatever the file says
  int default_window = 0;     // when the file has no key; 0: then there is none
  float local_rope_base = 0;  // > 0: sliding layers turn by this base unless the file says; 0: by the model's
  bool local_rope_unscaled = false;
  bool rope_only_sliding = false;

  int no_rope_period = 0;       // every n-th layer has no rotary embedding
  bool embedding_root = false;  // embeddings are times sqrt(n_embd)
  bool scaled_query = false;    // queries are scaled before they meet the keys
  int wide_scale_layers = 0;  // a model of so many layers scales attention by n_embd / heads instead of the head's size
  bool granite_scales = false;  // embedding, residual, attention scales; logits divided by logit_scale
  bool logit_scale = false;     // logits times logit_scale
  bool softcaps = false;        // the keys of attention's and the logits' caps count
  float default_attention_softcap = 0;
  float default_final_softcap = 0;
};

// Null when there is no such row.
const ArchTraits* FindArch(std::string_view arch);

}  // namespace shoal
