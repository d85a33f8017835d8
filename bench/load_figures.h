// What: what became of each request, and the figures of all of them: throughput, latencies, goodput, failures by cause.
// Owns: one Outcome a request; gaps between tokens, at most kMaxGaps of them.
// Limits: beyond kMaxGaps a fair sample of them is kept.
// Reads next: bench/load.cc (prints them).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"

namespace shoal::load {

inline constexpr size_t kMaxGaps = size_t{1} << 22;

struct Outcome {
  Nanos scheduled{};      // when it should have been sent, after the start of the run
  Nanos first_token{-1};  // after `scheduled`; -1: no text came
  Nanos last_token{-1};   // the same
  Nanos end{};            // the same: the stream was whole, or the request had failed
  Nanos longest_gap{};    // between two events with text
  int prompt_tokens = 0;  // by the server's count, else as planned
  int tokens = 0;         // generated: by the server's count, else events with text
  int events = 0;         // with text
  bool counted_by_server = false;
  std::string failure = {};  // the cause, a short name; empty: it went well

  bool ok() const { return failure.empty(); }
  // Mean time between its tokens; 0 with fewer than two.
  double InterTokenSeconds() const;
};

// Values of which percentiles are wanted; beyond `most`, each value ever added is kept with the same probability.
class Samples {
 public:
  explicit Samples(size_t most = kMaxGaps) : most_(most) {}
  void Add(double value);
  size_t count() const { return count_; }
  const std::vector<double>& values() const { return values_; }

 private:
  size_t most_;
  size_t count_ = 0;
  uint64_t state_ = 1;
  std::vector<double> values_;
};

// The value below which a share `p` (0 to 1) of them lies, interpolated between neighbours; 0 for none.
double Percentile(std::vector<double> values, double p);

struct Spread {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Spread SpreadOf(std::vector<double> values);

// What each request should keep to count for goodput; 0: no matter.
struct Slo {
  double first_token_ms = 0;
  double inter_token_ms = 0;  // its mean
};
bool Meets(const Outcome& outcome, const Slo& slo);

struct Figures {
  int requests = 0, ok = 0;
  std::map<std::string, int> failures;
  double seconds = 0;  // from the first request's time to the last one's end
  double requests_per_s = 0, goodput_per_s = 0;
  int64_t prompt_tokens = 0, tokens = 0;
  double tokens_per_s = 0;
  double tokens_per_event = 0;
  bool counted_by_server = false;  // all of them
  Spread first_token_ms, gap_ms, inter_token_ms, end_ms;
};
Figures Summarize(const std::vector<Outcome>& outcomes, const Samples& gap_seconds, const Slo& slo);

}  // namespace shoal::load
