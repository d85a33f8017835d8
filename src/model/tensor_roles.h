// What: which tensor of the file plays which part in the model: fills the TensorRefs of a ModelSpec whose numbers
// are known, and checks shapes and types as it goes.
// Fails: kModelCorrupt naming the tensor that is missing or has the wrong shape or type; kUnsupportedType.
// Reads next: model/spec_reader.h.
#pragma once

#include "base/result.h"
#include "core/model_spec.h"
#include "model/arch_traits.h"

namespace shoal {

class GgufFile;

// spec: numbers and per-layer heads, widths are set. longrope: 0 none, 1 the short factors, 2 the long ones.
Status FindTensors(const GgufFile& file, const ArchTraits& traits, int longrope, ModelSpec& spec);

}  // namespace shoal
