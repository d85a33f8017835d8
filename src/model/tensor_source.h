// What: where the bytes of tensors come from: the model file on the head, the head's link on a worker. A reader asks for
// exactly the bytes of its slices and nothing else.
// Threads: Read may be called from several threads at once.
// Fails: kPeerLost, kIo, kModelCorrupt; never partly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace shoal {

// `count` pieces of `length` bytes, `stride` bytes apart, the first at `offset` from the start of tensor `tensor`'s data.
// tensor: index into the (joined, for split files) tensor table.
struct TensorRange {
  uint32_t tensor = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t stride = 0;
  uint64_t count = 1;
  uint64_t bytes() const { return length * count; }
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // out.size() == range.bytes(); pieces are packed one after the other.
  virtual Status Read(const TensorRange& range, std::span<std::byte> out) = 0;
};

}  // namespace shoal
