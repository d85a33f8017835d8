// What: memory aligned for vectors; not initialised.
// Owns: the memory. Reserve throws away what was inside.
// Threads: none of its own; one at a time calls Reserve, while nobody uses the memory.
// Limits: none; it never shrinks.
// Fails: std::bad_alloc; the buffer is empty then.
// Reads next: compute/forward.h.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace shoal {

class AlignedBuffer {
 public:
  void Reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    data_.reset();
    bytes_ = 0;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    bytes_ = bytes;
  }
  std::byte* bytes() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Delete> data_;
  size_t bytes_ = 0;
};

}  // namespace shoal
