// What: tensors straight from the model file, for the process that has it (the head, or a rank beside it).
// Threads: Read from any thread.
#pragma once

#include <memory>
#include <utility>

#include "model/gguf.h"
#include "model/tensor_source.h"

namespace shoal {

class FileSource final : public TensorSource {
 public:
  explicit FileSource(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {}
  Status Read(const TensorRange& range, std::span<std::byte> out) override { return file_->Read(range, out); }

 private:
  const std::shared_ptr<const GgufFile> file_;
};

}  // namespace shoal
