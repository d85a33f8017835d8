// What: how often one kind of line may be logged, where foreigners decide how often there is a reason to.
// Pure: the time is an argument.
// Owns: two numbers. Threads: the caller's lock.
// Limits: one kind of line each.
// Fails: never.
// Reads next: base/log.h.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace shoal {

// At most one line every `every`.
class LineLimit {
 public:
  explicit LineLimit(Nanos every) : every_(every) {}

  // Whether a line may be written now; if so, how many were left out since the last one.
  std::optional<uint64_t> Ask(Time now) {
    if (last_ && now - *last_ < every_) {
      ++left_out_;
      return std::nullopt;
    }
    last_ = now;
    return std::exchange(left_out_, 0);
  }

 private:
  const Nanos every_;
  std::optional<Time> last_;
  uint64_t left_out_ = 0;
};

}  // namespace shoal
