// What: the storage types of GGUF tensors: how many values a block holds and how many bytes it takes.
// Source: ggml 0.27 (ggml.h; sizes as ggml_blck_size and ggml_type_size report them).
#pragma once

#include <cstdint>
#include <string_view>

namespace shoal {

struct GgufTensorType {
  std::string_view name;      // empty: no such type
  uint32_t block_values = 0;  // 0: the number is known, but no such data may be in a file any more
  uint32_t block_bytes = 0;
};

// Never fails; look at `name` and `block_values`.
GgufTensorType TensorTypeOf(uint32_t type);

}  // namespace shoal
