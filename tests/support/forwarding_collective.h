// What: a collective that hands every call to another; a test derives from it and changes what it is about.
// Owns: nothing: the other outlives it.
// Threads: as the other's.
// Reads next: comm/collective.h.
#pragma once

#include "comm/collective.h"

namespace shoal {

class ForwardingCollective : public Collective {
 public:
  explicit ForwardingCollective(Collective& under) : under_(under) {}
  int rank() const override { return under_.rank(); }
  int size() const override { return under_.size(); }
  Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) override {
    return under_.AllReduce(shares, own, out);
  }
  Status ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                       std::span<float> out) override {
    return under_.ReduceScatter(shares, counts, own, out);
  }
  Status AllGather(std::span<const std::byte> own, std::span<const size_t> counts, std::span<std::byte> out) override {
    return under_.AllGather(own, counts, out);
  }
  Status Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                std::span<std::byte> out) override {
    return under_.Gather(root, own, counts, out);
  }
  Status Broadcast(int root, std::span<std::byte> bytes) override { return under_.Broadcast(root, bytes); }
  Status Send(int to, std::span<const std::byte> bytes) override { return under_.Send(to, bytes); }
  Status Receive(int from, std::span<std::byte> bytes) override { return under_.Receive(from, bytes); }
  Status Barrier() override { return under_.Barrier(); }
  void SetDeadline(Deadline deadline) override { under_.SetDeadline(deadline); }
  void Close() override { under_.Close(); }

 protected:
  Collective& under_;
};

}  // namespace shoal
