// What: writes small GGUF files (v2 or v3, little-endian) for tests and tools. It writes what it is told, wrong
// things too, so that tests can make hostile files; it checks nothing.
// Owns: a copy of everything given to it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.h"

namespace shoal {

class GgufWriter {
 public:
  // An alignment other than 32 is written as the key general.alignment.
  explicit GgufWriter(uint32_t version = 3, uint32_t alignment = 32);

  void SetU16(std::string_view key, uint16_t value);
  void SetU32(std::string_view key, uint32_t value);
  void SetI32(std::string_view key, int32_t value);
  void SetU64(std::string_view key, uint64_t value);
  void SetF32(std::string_view key, float value);
  void SetBool(std::string_view key, bool value);
  void SetString(std::string_view key, std::string_view value);
  void SetStrings(std::string_view key, std::span<const std::string> values);
  void SetFloats(std::string_view key, std::span<const float> values);
  void SetInts(std::string_view key, std::span<const int32_t> values);
  // `bytes` as they are to lie behind the type number (arrays: element type, count and elements too).
  void SetRaw(std::string_view key, GgufType type, std::string_view bytes);

  void AddF32(std::string_view name, std::vector<int64_t> dims, std::span<const float> values);
  void AddRaw(std::string_view name, uint32_t type, std::vector<int64_t> dims, std::string bytes);

  std::string Build() const;

 private:
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<int64_t> dims;
    std::string bytes;
  };
  const uint32_t version_;
  const uint32_t alignment_;
  uint64_t keys_ = 0;
  std::string metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace shoal
