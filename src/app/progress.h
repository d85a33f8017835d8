// What: a progress bar on stderr for long work; drawn on a terminal only, so logs and pipes stay clean.
// Threads: any may add; one at a time draws, ten times a second at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "model/tensor_source.h"

namespace shoal {

class ProgressBar {
 public:
  ProgressBar(std::string what, uint64_t total_bytes);
  ~ProgressBar();            // wipes the line
  void Add(uint64_t bytes);  // any thread

 private:
  void Draw(uint64_t done);
  const std::string what_;
  const uint64_t total_;
  const bool terminal_;
  const Time begin_;
  std::atomic<uint64_t> done_{0};
  std::mutex mutex_;
  Time last_{};
};

// Counts what is read through it.
class ProgressSource : public TensorSource {
 public:
  ProgressSource(TensorSource& source, ProgressBar& bar) : source_(source), bar_(bar) {}
  Status Read(const TensorRange& range, std::span<std::byte> out) override {
    bar_.Add(range.bytes());
    return source_.Read(range, out);
  }

 private:
  TensorSource& source_;
  ProgressBar& bar_;
};

}  // namespace shoal
