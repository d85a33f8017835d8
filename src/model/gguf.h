// What: a GGUF file (v2, v3; one file or a split set), fully validated before any size in it is trusted. Nothing is mapped
// into memory: the header is kept, tensors are read where they lie.
// Owns: the header bytes and the open files. Views returned from here live as long as the GgufFile.
// Threads: immutable after opening; Read from any thread.
// Limits: core/limits.h (metadata 256 MB, alignment 1 MiB, ...).
// Fails: kModelNotFound, kModelCorrupt, kModelIncomplete, kUnsupportedFormat/Version/Endianness/Type; the message names
// the file and what is wrong, and says what a look-alike (Git-LFS pointer, zip, HTML, pickle, safetensors, old GGML)
// is.
// Source: the GGUF specification (ggml docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/tensor_source.h"

namespace shoal {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

// A metadata value; scalars by value, strings and arrays as views into the file.
struct GgufValue {
  GgufType type = GgufType::kUint8;
  GgufType element = GgufType::kUint8;  // arrays: element type
  uint64_t count = 0;                   // arrays: elements
  std::span<const std::byte> bytes;  // the value as it lies in the file (arrays: the elements; strings: the characters)
};

struct TensorInfo {
  std::string name;
  uint32_t type = 0;          // GGUF's number; compute/kernels WeightType where it can be computed with
  std::vector<int64_t> dims;  // innermost first: [columns, rows, ...]
  uint32_t file = 0;          // which file of a split set
  uint64_t offset = 0;        // from the start of that file
  uint64_t bytes = 0;
  int64_t columns() const { return dims[0]; }
  int64_t rows() const;  // product of the other dims
  uint64_t row_bytes() const { return bytes / static_cast<uint64_t>(rows()); }
};

class GgufFile {
 public:
  // Opens `path` and, when it is a part of a split set (-00001-of-000NN), the others beside it.
  static Result<std::shared_ptr<const GgufFile>> Open(const std::filesystem::path& path);
  // The header(s) alone (everything before the tensor data), as a worker gets them: one span per file of the set,
  // each with the size of its whole file. Tensor data cannot be read from such a GgufFile.
  struct Header {
    std::span<const std::byte> bytes;
    uint64_t file_size;
  };
  static Result<std::shared_ptr<const GgufFile>> ParseHeaders(std::span<const Header> headers);
  virtual ~GgufFile() = default;

  // Metadata. Get* return kModelCorrupt naming the key when it is there with the wrong type or range; empty when
  // missing.
  virtual const GgufValue* Find(std::string_view key) const = 0;
  virtual std::vector<std::string_view> Keys() const = 0;  // in file order
  Result<std::optional<std::string_view>> GetString(std::string_view key) const;
  Result<std::optional<int64_t>> GetInt(std::string_view key, int64_t low, int64_t high) const;  // any integer type
  Result<std::optional<double>> GetFloat(std::string_view key) const;                            // finite
  Result<std::optional<bool>> GetBool(std::string_view key) const;
  Result<std::optional<std::vector<std::string_view>>> GetStrings(std::string_view key) const;
  // Arrays of truth values count as integers 0 and 1.
  Result<std::optional<std::vector<int64_t>>> GetInts(std::string_view key, int64_t low, int64_t high) const;
  Result<std::optional<std::vector<float>>> GetFloats(std::string_view key) const;

  virtual std::span<const TensorInfo> tensors() const = 0;
  virtual const TensorInfo* FindTensor(std::string_view name) const = 0;
  virtual int version() const = 0;
  virtual int file_count() const = 0;
  virtual const std::string& name() const = 0;            // path, for messages
  virtual std::vector<std::string> warnings() const = 0;  // accepted but odd (unknown keys are not odd)
  // The header bytes of file i, as ParseHeaders takes them, whether it is on disk or not.
  virtual Header header(int file) const = 0;

  // Reads from the file (CHECKed not to be header-only): one that shrank or was changed since it was opened is kIo,
  // and never other weights.
  virtual Status Read(const TensorRange& range, std::span<std::byte> out) const = 0;
};

}  // namespace shoal
