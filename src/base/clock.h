// What: points in time and deadlines, in nanoseconds of a monotonic clock. Pure code takes `Time` as an argument;
// only shells (engine threads, sockets, sim) read the clock.
#pragma once

#include <chrono>
#include <cstdint>

namespace shoal {

using Nanos = std::chrono::nanoseconds;
using Time = std::chrono::time_point<std::chrono::steady_clock, Nanos>;

inline Time Now() { return std::chrono::time_point_cast<Nanos>(std::chrono::steady_clock::now()); }

// A moment by which something must have happened. Everything remote takes one.
struct Deadline {
  Time at;
  static Deadline After(Nanos duration) { return {Now() + duration}; }
  bool passed() const { return Now() >= at; }
  // Milliseconds left for poll(2), rounded up, never negative.
  int poll_ms() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at - Now()).count();
    return left <= 0 ? 0 : left > 1'000'000'000 ? 1'000'000'000 : static_cast<int>(left);
  }
};

}  // namespace shoal
