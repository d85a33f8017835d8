// What: one GGUF header (everything before the tensor data), taken apart and checked. Nothing in it is believed:
// every length is held against the bytes left, every count against what those bytes could hold, every product and
// sum against overflow.
// Threads: pure; the views that come out point into the caller's bytes.
// Limits: 256 MB of header, a million keys, a million tensors, arrays nested four deep (core/limits.h).
// Fails: kModelCorrupt, kUnsupportedFormat/Version/Endianness/Type; the offset is in the detail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/gguf.h"

namespace shoal {

// Views point into the bytes that were parsed.
struct GgufHeader {
  int version = 0;
  std::vector<std::pair<std::string_view, GgufValue>> values;  // file order
  std::vector<uint32_t> by_key;                                // indices of `values`, sorted by key
  std::vector<TensorInfo> tensors;                             // offsets from the start of the file
  uint32_t alignment = 32;
  uint64_t header_bytes = 0;  // up to the end of the tensor table
  std::vector<std::string> warnings;

  const GgufValue* Find(std::string_view key) const;
};

// Parses the start of a file of `file_size` bytes, of which `bytes` are at hand; `name` is for messages.
// Gives 0 when `out` is complete, else how many bytes of the file are needed at the least (more than
// bytes.size(), at most file_size).
Result<uint64_t> ParseGgufHeader(std::span<const std::byte> bytes, uint64_t file_size, const std::string& name,
                                 GgufHeader& out);

// Bytes of one value of a fixed-size type; 0 for strings and arrays.
uint32_t GgufTypeSize(GgufType type);
std::string_view GgufTypeName(GgufType type);

// The string at the start of `bytes` (a checked array of strings), which is moved behind it.
std::string_view NextGgufString(std::span<const std::byte>& bytes);

}  // namespace shoal
