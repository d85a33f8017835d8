// What: a GGUF file's metadata and tensor table -> ModelSpec, by the row of its architecture (model/arch_traits.h).
// Everything is checked here: an executor may rely on the shapes and types of a ModelSpec.
// Threads: pure.
// Limits: core/limits.h (layers, experts, vocabulary, context).
// Fails: kUnsupportedArch, kUnsupportedModel (beyond a limit, or a variation this build does not have),
// kUnsupportedType, kModelCorrupt naming the key or the tensor. Unknown tensors are logged and left out; nothing is
// guessed.
// Reads next: core/model_spec.h, model/arch_traits.h, model/tensor_roles.h.
#pragma once

#include "base/result.h"
#include "core/model_spec.h"

namespace shoal {

class GgufFile;

Result<ModelSpec> ReadModelSpec(const GgufFile& file);

}  // namespace shoal
