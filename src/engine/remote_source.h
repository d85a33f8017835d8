// What: a worker's TensorSource: asks the head, over the control link, for exactly the bytes of its slices.
// Owns: nothing; borrows the link, which nothing else may receive from while loading.
// Threads: Read may be called from several threads; one request is under way at a time, its answer streams in chunks.
// Limits: each answer is as long as was asked for, or the link is at fault.
// Fails: kPeerLost, kPeerTimeout, kBadFrame, and what the head says (kModelCorrupt, kIo).
// Reads next: engine/shard_server.h (the other end).
#pragma once

#include <cstdint>
#include <mutex>

#include "base/result.h"
#include "model/tensor_source.h"
#include "net/link.h"

namespace shoal {

class RemoteSource : public TensorSource {
 public:
  explicit RemoteSource(Link& link) : link_(link) {}
  Status Read(const TensorRange& range, std::span<std::byte> out) override;
  // Bytes [offset, offset + out.size()) of the header of file `file` of the model.
  Status ReadHeader(uint32_t file, uint64_t offset, std::span<std::byte> out);
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  Status ReceiveBytes(uint64_t request, std::span<std::byte> out);

  Link& link_;
  std::mutex mutex_;
  uint64_t next_request_ = 1;
  uint64_t bytes_read_ = 0;
};

}  // namespace shoal
